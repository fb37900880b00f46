"""Which LoRAs are in the weights: the UNet's of the rows that step, the text encoder's of the text that is encoded.

The two change at different times, so each is asked for by itself and the other stays as it is.
"""

import time
from collections.abc import Callable, Iterable

from torch import nn

from worker.engine.lora import Adapter, LoraMerger
from worker.engine.lora.sets import fingerprint
from worker.engine.packing import PackedConvolutions

Set = tuple[Adapter, ...]


def unet_part(loras: Iterable[Adapter]) -> Set:
    """What of `loras` acts on the UNet."""
    return tuple(
        one._replace(text_encoder=None) for one in loras if one.unet is not None and "unet" in one.lora.components
    )


def text_part(loras: Iterable[Adapter]) -> Set:
    """What of `loras` acts on the text encoder."""
    return tuple(
        one._replace(unet=None)
        for one in loras
        if one.text_encoder is not None and "text_encoder" in one.lora.components
    )


def key_of(loras: Set) -> str:
    """The name of a set, "" for none: equal names on equal base weights mean equal weights."""
    return fingerprint(loras)


class Swaps:
    """`synchronize` waits for the device; `swapped` is called after every change of weights."""

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module | None,
        synchronize: Callable[[], None] = lambda: None,
        swapped: Callable[[], None] = lambda: None,
    ):
        self.merger = LoraMerger(unet, text_encoder)
        self._synchronize, self._swapped = synchronize, swapped
        self.packed: PackedConvolutions | None = None
        """Where convolutions are laid out for the CPU, what changed is laid out anew, as a part of the swap."""
        self._unet: Set = ()
        self._name = key_of(self._unet)
        self._text: Set = ()

    def unet(self, loras: Set) -> float:
        """Make the UNet's set exactly this; seconds it took, 0 where it was so already. Raises as `LoraMerger` does."""
        return self._change(loras, self._text)

    def text(self, loras: Set) -> float:
        """The same for the text encoder."""
        return self._change(self._unet, loras)

    @property
    def unet_set(self) -> Set:
        """What is in the UNet's weights."""
        return self._unet

    @property
    def merged(self) -> str:
        """The name of `unet_set`."""
        return self._name

    def seconds_of(self, change: Callable[[], bool]) -> float:
        """What `change` took, to the device's last kernel; 0 where it says that there was nothing to be done."""
        begin = time.monotonic()
        if not change():
            return 0.0
        self._synchronize()
        return time.monotonic() - begin

    def _change(self, unet: Set, text: Set) -> float:
        seconds = self.seconds_of(lambda: self._merged((*unet, *text)))
        self._unet, self._text, self._name = unet, text, key_of(unet)
        if seconds:
            self._swapped()
        return seconds

    def _merged(self, loras: Set) -> bool:
        changed = self.merger.set_adapters(loras, check_finite=True)
        if changed and self.packed is not None:
            self.packed.refresh()
        return changed
