"""How a network computes its attention: the settings that UNet and autoencoder share."""

from typing import Any

from torch import nn

from worker.engine.attention import Attention
from worker.engine.attention_products import AttentionProduct, scaled_dot_product, sliced, xformers
from worker.engine.errors import InvalidParameter


class AttentionSettings:
    """Methods of a network with `Attention` layers, under diffusers' names. None of them changes the result."""

    def attention_layers(self: nn.Module) -> dict[str, Attention]:
        """Every attention layer by its name in the state dict."""
        return {name: layer for name, layer in self.named_modules() if isinstance(layer, Attention)}

    def set_attention_slice(self, slice_size: str | int | list[int] | None) -> None:
        """Compute `slice_size` heads at a time: "auto" half of them, "max" one, a number, or one number a layer.

        None computes all at once again. Raises `InvalidParameter` for more than a layer has.
        """
        layers = list(self.attention_layers().values())
        for layer, size in zip(layers, _slice_sizes(slice_size, [layer.heads for layer in layers]), strict=True):
            layer.product = scaled_dot_product if size is None else sliced(size)

    def enable_xformers_memory_efficient_attention(self, attention_op: Any = None) -> None:
        """Use xFormers. Raises `FeatureUnavailable` where it is not installed or there is no CUDA device."""
        self._set_product(xformers(attention_op))

    def disable_xformers_memory_efficient_attention(self) -> None:
        self._set_product(scaled_dot_product)

    def fuse_qkv_projections(self) -> None:
        """One matrix product for query, key and value. The weights move: take LoRAs that are merged out first."""
        for layer in self.attention_layers().values():
            layer.pack()

    def unfuse_qkv_projections(self) -> None:
        for layer in self.attention_layers().values():
            layer.unpack()

    def _set_product(self, product: AttentionProduct) -> None:
        for layer in self.attention_layers().values():
            layer.product = product


def _slice_sizes(slice_size: str | int | list[int] | None, heads: list[int]) -> list[int | None]:
    if slice_size == "auto":
        return [max(1, count // 2) for count in heads]
    if slice_size == "max":
        return [1] * len(heads)
    sizes = list(slice_size) if isinstance(slice_size, list) else [slice_size] * len(heads)
    if len(sizes) != len(heads):
        raise InvalidParameter("slice_size", f"has {len(sizes)} entries and the network {len(heads)} attention layers")
    for size, count in zip(sizes, heads, strict=True):
        if size is not None and not (isinstance(size, int) and 1 <= size <= count):
            raise InvalidParameter(
                "slice_size", f'must be "auto", "max" or 1…{count}, the heads of a layer, not {size!r}'
            )
    return sizes
