"""Several linear layers of one input as one matrix product, without giving up that each is a layer of its own."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PackedLinear:
    """Weights of layers with the same input, moved into one block of memory of which each layer's is a part.

    What is written into a layer's weight in place (a LoRA that is merged) is therefore in the block as well.
    """

    @torch.no_grad()
    def __init__(self, layers: Sequence[nn.Linear]):
        self.layers = tuple(layers)
        self.widths = [layer.out_features for layer in layers]
        self.weight = self._move("weight")
        self.bias = self._move("bias") if layers[0].bias is not None else None
        self._at = [self._addresses(layer) for layer in layers]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """Every layer's output for `x` [..., in]: what calling them one by one gives, forward hooks included."""
        parts = F.linear(x, self.weight, self.bias).split(self.widths, dim=-1)
        return tuple(_hooked(layer, x, part) for layer, part in zip(self.layers, parts, strict=True))

    def stands_for(self, layers: Sequence[nn.Module]) -> bool:
        """Whether calling the block is still the same as calling `layers`.

        It is not where one was replaced or given other memory or a hook on its input, nor while gradients are wanted:
        they belong to the layers' own parameters.
        """
        return not torch.is_grad_enabled() and all(
            now is layer
            and not layer._forward_pre_hooks
            and not layer._forward_hooks_with_kwargs
            and self._addresses(layer) == at
            for now, layer, at in zip(layers, self.layers, self._at, strict=True)
        )

    def _move(self, name: str) -> Tensor:
        parameters = [getattr(layer, name) for layer in self.layers]
        block = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, part in zip(parameters, block.split(self.widths), strict=True):
            parameter.data = part
        return block

    @staticmethod
    def _addresses(layer: nn.Linear) -> tuple[int, int | None]:
        return layer.weight.data_ptr(), None if layer.bias is None else layer.bias.data_ptr()


def _hooked(layer: nn.Linear, x: Tensor, output: Tensor) -> Tensor:
    """What `layer` returns when its product is `output`: a LoRA of single rows comes in by a forward hook."""
    for hook in layer._forward_hooks.values():
        changed = hook(layer, (x,), output)
        output = output if changed is None else changed
    return output
