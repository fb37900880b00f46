"""Checkpoints in the naming of latent-diffusion, made from a folder in the layout of diffusers.

Whether the names are right is for diffusers to say: the tests let it read these files too.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from worker.engine.ldm_names import unet_names

TRAINING_STATE = {
    "betas": torch.zeros(1000),
    "model_ema.decay": torch.tensor(0.9999),
    "first_stage_model.loss.logvar": torch.zeros(()),
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def old_vae_name(name: str, levels: int) -> str:
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    attention = r"mid_block\.attentions\.0\.(group_norm|to_q|to_k|to_v|to_out\.0)"
    return re.sub(attention, lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}", name)


def old_vae(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    levels = len({name.split(".")[2] for name in tensors if name.startswith("encoder.down_blocks.")})
    renamed = {old_vae_name(name, levels): tensor for name, tensor in tensors.items()}
    attention = re.compile(r".*attn_1\.(q|k|v|proj_out)\.weight")
    return {name: t[:, :, None, None] if attention.fullmatch(name) else t for name, t in renamed.items()}


def old_open_clip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As OpenCLIP stores it: query, key and value in one tensor, and one layer more than is used."""
    leaves = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    renamed = {
        "positional_embedding": tensors["embeddings.position_embedding.weight"],
        "token_embedding.weight": tensors["embeddings.token_embedding.weight"],
        "text_projection": torch.eye(tensors["final_layer_norm.weight"].shape[0]),
        "logit_scale": torch.tensor(4.6),
    }
    for kind in ("weight", "bias"):
        renamed[f"ln_final.{kind}"] = tensors[f"final_layer_norm.{kind}"]
    layers = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.layers."))
    for layer in range(layers + 1):
        source, target = f"encoder.layers.{min(layer, layers - 1)}.", f"transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [tensors[f"{source}self_attn.{letter}_proj.{kind}"] for letter in "qkv"]
            renamed[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
            renamed[f"{target}attn.out_proj.{kind}"] = tensors[f"{source}self_attn.out_proj.{kind}"]
            renamed |= {f"{target}{old}.{kind}": tensors[f"{source}{new}.{kind}"] for new, old in leaves.items()}
    return renamed


def write(folder: Path, target: Path, *, open_clip: bool = False) -> dict[str, Tensor]:
    """The checkpoint of `folder` as one file; returns its tensors."""
    unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    vae = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    clip = load_file(folder / "text_encoder" / "model.safetensors")
    clip = {name.removeprefix("text_model."): tensor for name, tensor in clip.items()}
    old = unet_names(unet)
    tensors = {
        **TRAINING_STATE,
        **{f"model.diffusion_model.{old[name]}": tensor for name, tensor in unet.items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in old_vae(vae).items()},
    }
    if open_clip:
        tensors |= {f"cond_stage_model.model.{name}": tensor for name, tensor in old_open_clip(clip).items()}
    else:
        tensors |= {f"cond_stage_model.transformer.text_model.{name}": tensor for name, tensor in clip.items()}
        tensors["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77)[None]
    # copies, since what shares memory cannot be written
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, target)
    return tensors
