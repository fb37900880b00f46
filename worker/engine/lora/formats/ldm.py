"""The UNet's modules under the names of the original latent-diffusion code (Rombach et al. 2022, arXiv:2112.10752).

That code counts its blocks in one row (`input_blocks.0` is the first convolution) where diffusers nests them
(`down_blocks.0.resnets.1`), so the numbers follow from how many layers each level has.
"""

import re
from collections.abc import Iterable

_WHOLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}
_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_MID = {"resnets.0": "middle_block.0", "attentions.0": "middle_block.1", "resnets.1": "middle_block.2"}

_LEVEL = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_MIDDLE = re.compile(r"mid_block\.(resnets\.[01]|attentions\.0)\.(.+)")


def ldm_paths(paths: Iterable[str]) -> dict[str, str]:
    """The LDM path of each of diffusers' `paths` that has one; `paths` must be those of the whole UNet."""
    paths = list(paths)
    numbers = _block_numbers(paths)
    named: dict[str, str] = {}
    for path in paths:
        if path in _WHOLE:
            named[path] = _WHOLE[path]
        elif match := _MIDDLE.fullmatch(path):
            part, rest = match.groups()
            named[path] = f"{_MID[part]}.{_inner(part, rest)}"
        elif match := _LEVEL.fullmatch(path):
            side, level, part, index, rest = match.groups()
            inner = "op" if part == "downsamplers" else _inner(part, rest)
            named[path] = f"{numbers[f'{side}.{level}.{part}.{index}']}.{inner}"
    return named


def _inner(part: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if part.startswith("resnets") else rest


def _block_numbers(paths: list[str]) -> dict[str, str]:
    """`input_blocks.n.m` or `output_blocks.n.m` for each resnet, attention and sampler, as LDM's constructor counts."""
    found = {".".join(match.groups()[:4]) for match in map(_LEVEL.fullmatch, paths) if match}
    numbers: dict[str, str] = {}
    for side, row, first in (("down", "input_blocks", 1), ("up", "output_blocks", 0)):
        count, level = first, 0
        while f"{side}.{level}.resnets.0" in found:
            layer = 0
            while f"{side}.{level}.resnets.{layer}" in found:
                numbers[f"{side}.{level}.resnets.{layer}"] = f"{row}.{count}.0"
                numbers[f"{side}.{level}.attentions.{layer}"] = f"{row}.{count}.1"
                count, layer = count + 1, layer + 1
            if f"{side}.{level}.downsamplers.0" in found:
                numbers[f"{side}.{level}.downsamplers.0"] = f"{row}.{count}.0"
                count += 1
            if f"{side}.{level}.upsamplers.0" in found:
                # The upsampler closes the level's last block: third behind an attention, second without one.
                place = 2 if f"{side}.{level}.attentions.0" in found else 1
                numbers[f"{side}.{level}.upsamplers.0"] = f"{row}.{count - 1}.{place}"
            level += 1
    return numbers
