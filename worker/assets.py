"""What jobs bring besides pictures: LoRAs, embeddings, IP-Adapters; how a file becomes one, and what is known of it.

`worker.bank` keeps them in memory and on disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from farm.errors import InvalidInput, LoraInvalid, LoraNonFinite
from farm.weights import read_header, refuse_non_finite


@dataclass(frozen=True)
class Asset:
    """A weights file in memory. `weights` is what its reader made of it."""

    sha256: str
    weights: Any
    size: int  # of the file, bytes
    tier: str  # where it came from this time: resident (on the device), ram, disk or remote
    seconds: float = 0.0  # from asking for it to having it


@dataclass(frozen=True)
class Kind:
    """A sort of asset. `invalid` is what a file that is none is told to be; `placed` says whether its tensors are
    brought to the device before they are used.
    """

    read: Callable[[bytes], Any]
    invalid: type[InvalidInput] = LoraInvalid
    placed: bool = False

    def judged(self, data: bytes) -> Any:
        """What `read` makes of the file, once its header is within the limits of `farm.weights` and its numbers are
        finite.

        Raises UnsafeWeightsFormat, `invalid` (LoraNonFinite for the numbers of a LoRA), and what `read` raises.
        """
        header = read_header(data, invalid=self.invalid)
        refuse_non_finite(data, header, invalid=LoraNonFinite if self.invalid is LoraInvalid else self.invalid)
        return self.read(data)
