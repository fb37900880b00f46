"""Convolution weights laid out once as a CPU's kernels want them.

torch hands every convolution in float32 to oneDNN (https://uxlfoundation.github.io/oneDNN), which first copies the
weights into blocks of its own layout: at each call, and where a feature map is small that copy is most of the time.
Here it is made once and kept. The products are the same but for the order of their sums. What is written into a
weight in place (a LoRA that is merged) is noticed by its version counter, and that weight alone is laid out anew.

The layout depends on the shape of the input, and a wrong one is many times slower than none: so it is made for every
shape that comes, and shapes that want the same one share it. Memory: the convolutions' weights once more for each
layout, of which the sizes of one worker seldom want two.
"""

from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Signature: TypeAlias = tuple[torch.Size, int]  # an input's shape, and the number of threads


class PackedConvolutions:
    """The convolutions of `model` from now on use packed weights, until `remove`.

    Wherever they cannot (another device or dtype than float32 on a CPU, gradients wanted, a build without oneDNN) the
    layers do what they always did. Parameters, state dict, hooks, moving and casting are untouched. Outputs are
    channels last. Not safe for two threads at once.
    """

    def __init__(self, model: nn.Module):
        self._layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d) and _plain(layer)]
        for layer in self._layers:
            layer.forward = _PackedForward(layer)

    def remove(self) -> None:
        """Give the memory back; the layers are as they were."""
        for layer in self._layers:
            del layer.forward
        self._layers = []

    def refresh(self) -> int:
        """Lay out anew now, rather than in the next forward, what was packed and has changed since: how many layers."""
        return sum(layer.forward.refresh() for layer in self._layers)

    @property
    def nbytes(self) -> int:
        return sum(layer.forward.nbytes for layer in self._layers)


class _PackedForward:
    """One layer's forward."""

    def __init__(self, layer: nn.Conv2d):
        self._layer = layer
        self._layouts: dict[Signature, bytes] = {}
        self._packs: dict[bytes, Tensor] = {}
        self._packed_at: tuple[int, int] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _PackedForward, (self._layer,)  # packed weights cannot be copied or pickled, and need not be

    def __call__(self, x: Tensor) -> Tensor:
        layer = self._layer
        if not self._applies(x):
            return type(layer).forward(layer, x)
        where = (layer.padding, layer.stride, layer.dilation, layer.groups)
        pack = self._pack((x.shape, torch.get_num_threads()))
        return torch.ops.mkldnn._convolution_pointwise(x, pack, layer.bias, *where, "none", [], "")

    def refresh(self) -> bool:
        if not self._packs or self._packed_at == _stamp(self._layer.weight):
            return False
        used = set(self._packs)
        for signature, layout in self._layouts.items():
            if layout in used:
                self._pack(signature)
        return True

    @property
    def nbytes(self) -> int:
        return sum(torch.ops.mkldnn._nbytes(pack) for pack in self._packs.values())

    def _applies(self, x: Tensor) -> bool:
        weight = self._layer.weight
        return (
            x.dim() == 4
            and weight.device.type == x.device.type == "cpu"
            and weight.dtype == x.dtype == torch.float32
            and not torch.is_grad_enabled()
            and torch.backends.mkldnn.is_available()
            and torch.backends.mkldnn.enabled
        )

    def _pack(self, signature: Signature) -> Tensor:
        stamp = _stamp(self._layer.weight)
        if self._packed_at != stamp:
            self._packs.clear()
            self._packed_at = stamp
        layout = self._layouts.get(signature)
        if layout not in self._packs:
            layer, (shape, _) = self._layer, signature
            where = (layer.padding, layer.stride, layer.dilation, layer.groups)
            pack = torch.ops.mkldnn._reorder_convolution_weight(layer.weight, *where, list(shape))
            layout = self._layouts[signature] = _layout_of(pack)
            self._packs.setdefault(layout, pack)
        return self._packs[layout]


def _plain(layer: nn.Conv2d) -> bool:
    return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def _stamp(weight: Tensor) -> tuple[int, int]:
    """Changes when anybody writes the weight in place or gives it other memory."""
    return weight.data_ptr(), weight._version


def _layout_of(pack: Tensor) -> bytes:
    """oneDNN's description of a layout. Behind the format's kind lie four bytes of padding with anything in them."""
    words = torch.ops.mkldnn._get_mkldnn_serialized_md(pack).view(torch.int32).tolist()
    return repr(words[:27] + words[28:]).encode()
