"""IP-Adapters: pictures as prompts (Ye et al. 2023, https://arxiv.org/abs/2308.06721), several at a time.

A file holds two groups: `image_proj`, which makes tokens of CLIP's view of a picture, and `ip_adapter`, a pair of
key and value weights for each cross-attention layer, numbered 1, 3, 5 … in the order down, up, middle.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor, nn

from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.ip_attention import ImageKeyValue, ImagePrompt, ImageTokens, Scale
from worker.engine.ip_projections import image_projection
from worker.engine.model import check_tensors
from worker.engine.weights_file import parse_safetensors, read_safetensors

Groups: TypeAlias = Mapping[str, Mapping[str, Tensor]]  # "image_proj" and "ip_adapter"
ScaleSettings: TypeAlias = Scale | Mapping[str, Any]

_GROUPS = ("image_proj", "ip_adapter")
_LAYER = re.compile(r"(?:(down|up)_blocks\.(\d+)|mid_block)\.attentions\.(\d+)\..*\.attn2")


def read_ip_adapter(source: Path | bytes) -> dict[str, dict[str, Tensor]]:
    """The two groups of an IP-Adapter's safetensors file, given as its path or its bytes.

    Raises `CheckpointInvalid`, `UnsafeWeightsFormat`.
    """
    path = "the IP-Adapter" if isinstance(source, bytes) else source
    tensors = parse_safetensors(source, str(path)) if isinstance(source, bytes) else read_safetensors(source)
    groups: dict[str, dict[str, Tensor]] = {name: {} for name in _GROUPS}
    for key, tensor in tensors.items():
        group, _, name = key.partition(".")
        if group not in groups or not name:
            raise CheckpointInvalid(f"{path} is no IP-Adapter: {key} is below neither image_proj. nor ip_adapter.")
        groups[group][name] = tensor
    return groups


class IPAdapter(nn.Module):
    """One adapter for one UNet: the projection and the layers' keys and values."""

    def __init__(self, groups: Groups, widths: Sequence[tuple[int, int]], where: str):
        """`widths`: (of a token, of all heads together) of each cross-attention layer in the adapter's order."""
        super().__init__()
        if missing := [name for name in _GROUPS if not groups.get(name)]:
            raise CheckpointInvalid(f"{where} is no IP-Adapter: it has no {' and no '.join(missing)}")
        self.projection = image_projection(groups["image_proj"], where)
        self.layers = nn.ModuleList(ImageKeyValue(*width) for width in widths)
        layers = {
            f"{2 * number + 1}.{name}": p
            for number, layer in enumerate(self.layers)
            for name, p in layer.state_dict().items()
        }
        check_tensors({name: p.shape for name, p in layers.items()}, groups["ip_adapter"], f"{where}: ip_adapter")
        for name, parameter in layers.items():
            parameter.copy_(groups["ip_adapter"][name])
        self.eval()

    @property
    def uses_hidden_states(self) -> bool:
        """Whether it wants the image encoder's last hidden states but one, rather than its image embedding."""
        return self.projection.uses_hidden_states


class ImagePrompts:
    """What a UNet with `attention_layers()` can do with IP-Adapters. `ip_adapters` are those that are loaded."""

    ip_adapters: nn.ModuleList

    def load_ip_adapters(self: Any, adapters: Sequence[Groups], names: Sequence[str] = ()) -> None:
        """Load these adapters in the place of all others, each with scale 1; `names` are for messages.

        An adapter is the pair of groups `read_ip_adapter` gives. Nothing changes if one of them raises
        `CheckpointInvalid`.
        """
        targets = list(self._prompted_layers().values())
        widths = [(layer.to_k.in_features, layer.to_k.out_features) for layer in targets]
        names = [*names, *(f"IP-Adapter {number}" for number in range(len(names), len(adapters)))]
        loaded = [IPAdapter(groups, widths, name) for groups, name in zip(adapters, names, strict=True)]
        self.ip_adapters = nn.ModuleList(loaded).to(self.device, self.dtype)
        for number, layer in enumerate(targets):
            layer.image_layers = tuple(adapter.layers[number] for adapter in loaded)

    def unload_ip_adapters(self) -> None:
        self.load_ip_adapters([])

    def set_ip_adapter_scale(self, scale: ScaleSettings | Sequence[ScaleSettings]) -> None:
        """How much each adapter counts: a number; or blocks with numbers, all others 0; in a list, one an adapter.

        Blocks are given as `{"down": {"block_2": [0.0, 1.0]}, "up": 0.5, "mid": 1.0}`; where a number is due, a list
        has one for each transformer of a block. Raises `InvalidParameter` for blocks there are none of.
        """
        settings = list(scale) if isinstance(scale, list | tuple) else [scale]
        if len(settings) != len(self.ip_adapters):
            rule = f"has {len(settings)} entries and there are {len(self.ip_adapters)} IP-Adapters: give one each"
            raise InvalidParameter("scale", rule)
        names = list(self._prompted_layers())
        wanted = [_layer_scales(setting, names) for setting in settings]
        for adapter, scales in zip(self.ip_adapters, wanted, strict=True):
            for layer, value in zip(adapter.layers, scales, strict=True):
                layer.scale = value

    def project_image_embeds(self: Any, embeds: Sequence[Tensor]) -> list[Tensor]:
        """For each adapter [B, pictures, E] or, of hidden states, [B, pictures, S, E] → [B, pictures, tokens, D]."""
        if len(embeds) != len(self.ip_adapters):
            rule = f"has {len(embeds)} entries and there are {len(self.ip_adapters)} IP-Adapters: give one each"
            raise InvalidParameter("ip_adapter_image_embeds", rule)
        return [
            adapter.projection(given.flatten(0, 1).to(self.dtype)).unflatten(0, given.shape[:2])
            for adapter, given in zip(self.ip_adapters, embeds, strict=True)
        ]

    def image_prompts(
        self, tokens: Sequence[ImageTokens] | None, masks: Sequence[Tensor | None] | None
    ) -> list[ImagePrompt]:
        """The prompts that `forward` hands to its layers. Raises `InvalidParameter` if they do not belong together."""
        if tokens is None:
            return []
        if len(tokens) != len(self.ip_adapters):
            rule = f"has {len(tokens)} entries and there are {len(self.ip_adapters)} IP-Adapters: give one each"
            raise InvalidParameter("ip_hidden_states", rule)
        masks = [None] * len(tokens) if masks is None else masks
        if len(masks) != len(tokens):
            rule = f"has {len(masks)} entries and there are {len(tokens)} IP-Adapters: give one each"
            raise InvalidParameter("ip_adapter_masks", rule)
        prompts = [ImagePrompt(given, mask) for given, mask in zip(tokens, masks, strict=True)]
        for prompt, mask in zip(prompts, masks, strict=True):
            if mask is not None and (mask.ndim != 4 or mask.shape[1] != prompt.pictures):
                raise InvalidParameter(
                    "ip_adapter_masks",
                    f"must be [1, pictures, height, width] for tokens [B, pictures, tokens, D], not {list(mask.shape)} "
                    f"for {'tokens of all' if prompt.pictures is None else prompt.pictures} pictures",
                )
        return prompts

    def _prompted_layers(self: Any) -> dict[str, Any]:
        """The layers that look at the text, in the order in which adapters number them."""
        return {name: layer for name, layer in self.attention_layers().items() if _LAYER.fullmatch(name)}


def _layer_scales(setting: ScaleSettings, names: Sequence[str]) -> list[Scale]:
    """The scale of each cross-attention layer."""
    if not isinstance(setting, Mapping):
        return [_checked(setting)] * len(names)
    places = [_LAYER.fullmatch(name).groups() for name in names]
    blocks = {side: {int(block) for place, block, _ in places if place == side} for side in ("down", "up")}
    _refuse_unknown(setting, blocks)
    scales = []
    for side, block, index in places:
        given = setting.get(side or "mid", 0.0)
        if isinstance(given, Mapping):
            given = given.get(f"block_{block}", 0.0)
        if isinstance(given, list | tuple):
            count = len({place[2] for place in places if place[:2] == (side, block)})
            if len(given) not in (1, count):
                raise InvalidParameter("scale", f"has {len(given)} numbers for a block of {count} transformers")
            given = given[0] if len(given) == 1 else given[int(index)]
        scales.append(_checked(given))
    return scales


def _refuse_unknown(setting: Mapping[str, Any], blocks: Mapping[str, set[int]]) -> None:
    known = {"mid", *blocks}
    for side, given in setting.items():
        if side not in known:
            raise InvalidParameter("scale", f"has no place {side!r}; there are down, mid and up")
        if isinstance(given, Mapping):
            names = [f"block_{block}" for block in sorted(blocks.get(side, ()))]
            if unknown := sorted(given.keys() - set(names)):
                raise InvalidParameter(
                    "scale", f"has no block {side}.{unknown[0]} with attention; there are {', '.join(names)}"
                )


def _checked(scale: Any) -> Scale:
    numbers = scale if isinstance(scale, list | tuple) else [scale]
    for number in numbers:
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise InvalidParameter("scale", f"must consist of finite numbers, not {number!r}")
    return tuple(scale) if isinstance(scale, list | tuple) else scale
