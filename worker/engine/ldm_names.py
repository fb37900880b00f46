"""The tensors of an original checkpoint (CompVis latent-diffusion, Stability stable-diffusion) under today's names.

https://github.com/CompVis/latent-diffusion and https://github.com/mlfoundations/open_clip define the old names. Each
function takes the tensors of one part, its prefix already off, and gives them as our networks want them; what it does
not know keeps its name, so that the strict loader finds and names it.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from worker.engine.lora.formats.ldm import ldm_paths

_UNET_NORMS = {"norm1": "in_layers.0", "norm2": "out_layers.0"}

_VAE_RULES = [
    (re.compile(r"\.down\.(\d+)\.block\."), r".down_blocks.\1.resnets."),
    (re.compile(r"\.down\.(\d+)\.downsample\."), r".down_blocks.\1.downsamplers.0."),
    (re.compile(r"\.up\.(\d+)\.block\."), r".up_blocks.\1.resnets."),
    (re.compile(r"\.up\.(\d+)\.upsample\."), r".up_blocks.\1.upsamplers.0."),
    (re.compile(r"\.mid\.block_1\."), ".mid_block.resnets.0."),
    (re.compile(r"\.mid\.block_2\."), ".mid_block.resnets.1."),
    (re.compile(r"\.mid\.attn_1\.norm\."), ".mid_block.attentions.0.group_norm."),
    (re.compile(r"\.mid\.attn_1\.proj_out\."), ".mid_block.attentions.0.to_out.0."),
    (re.compile(r"\.mid\.attn_1\.([qkv])\."), r".mid_block.attentions.0.to_\1."),
    (re.compile(r"\.nin_shortcut\."), ".conv_shortcut."),
    (re.compile(r"\.norm_out\."), ".conv_norm_out."),
]
_ATTENTION_WEIGHT = re.compile(r"\.mid_block\.attentions\.0\.to_(q|k|v|out\.0)\.weight$")

_OPEN_CLIP_RULES = [
    (re.compile(r"^positional_embedding$"), "embeddings.position_embedding.weight"),
    (re.compile(r"^token_embedding\."), "embeddings.token_embedding."),
    (re.compile(r"^ln_final\."), "final_layer_norm."),
    (re.compile(r"^transformer\.resblocks\."), "encoder.layers."),
    (re.compile(r"\.ln_([12])\."), r".layer_norm\1."),
    (re.compile(r"\.mlp\.c_fc\."), ".mlp.fc1."),
    (re.compile(r"\.mlp\.c_proj\."), ".mlp.fc2."),
    (re.compile(r"\.attn\."), ".self_attn."),
]
_OPEN_CLIP_UNUSED = {
    "text_projection",
    "logit_scale",
    "attn_mask",
}  # for comparing with pictures, which nobody does here
_IN_PROJECTION = re.compile(r"(.*\.self_attn\.)in_proj_(weight|bias)")


def unet_names(wanted: Iterable[str]) -> dict[str, str]:
    """For each parameter of a UNet, by its name of today, the name in an original checkpoint."""
    wanted = list(wanted)
    modules = {name.rpartition(".")[0] for name in wanted}
    old = {"conv_norm_out": "out.0", **ldm_paths(sorted(modules))}
    for module in modules:
        place, _, leaf = module.rpartition(".")
        if leaf in _UNET_NORMS and ".resnets." in f".{place}.":
            old[module] = f"{old[module].rpartition('.')[0]}.{_UNET_NORMS[leaf]}"
    named = {}
    for name in wanted:
        module, _, parameter = name.rpartition(".")
        named[name] = f"{old[module]}.{parameter}"
    return named


def unet_tensors(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    new = {old: today for today, old in unet_names(wanted).items()}
    return {new.get(name, name): tensor for name, tensor in tensors.items()}


def vae_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Levels of the way up are counted from the bottom now; attention's 1×1 convolutions are linear layers."""
    levels = sum(bool(re.fullmatch(r"decoder\.up\.\d+\.block\.0\.conv1\.weight", name)) for name in tensors)
    renamed = {}
    for old, tensor in tensors.items():
        if old.startswith("loss."):
            continue  # the discriminator of its training
        name = _renamed(old, _VAE_RULES)
        name = re.sub(r"(?<=\.up_blocks\.)\d+", lambda level: str(levels - 1 - int(level[0])), name)
        renamed[name] = tensor.flatten(1) if _ATTENTION_WEIGHT.search(name) else tensor
    return renamed


def open_clip_tensors(tensors: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The first `layers` layers of an OpenCLIP text tower; query, key and value come out of one block."""
    renamed: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        name = _renamed(old, _OPEN_CLIP_RULES)
        number = re.match(r"encoder\.layers\.(\d+)\.", name)
        # Stable Diffusion 2 was trained on the last layer's input; the file holds that layer all the same
        if old in _OPEN_CLIP_UNUSED or (number and int(number[1]) == layers):
            continue
        if block := _IN_PROJECTION.fullmatch(name):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            renamed |= {f"{block[1]}{letter}_proj.{block[2]}": part for letter, part in parts}
        else:
            renamed[name] = tensor
    return renamed


def _renamed(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
