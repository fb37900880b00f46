"""What the demo's model is made of, and its folder in the layout of Stable Diffusion 1.5 inpainting.

    model_index.json  unet/  vae/  text_encoder/  tokenizer/  scheduler/

The topology is the real one at a small width: an autoencoder with eight times downsampling and four latent channels,
CLIP's text encoder, a UNet with cross-attention that takes nine channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from worker.demo.vocabulary import MAX_LENGTH
from worker.engine.config import save_json
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL

WRITTEN_AS: Final = "0.42.1"  # the diffusers release whose format this is

# v-prediction (Salimans and Ho 2022, arXiv:2202.00512) on Stable Diffusion's own noise levels. "trailing" begins a run
# of few steps at the last of them, where there is nothing but noise (Lin et al. 2023, arXiv:2305.08891).
SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": WRITTEN_AS,
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


def unet_config(widths: Sequence[int], context_width: int, *, groups: int, sample_size: int) -> dict[str, Any]:
    """A UNet of as many levels as `widths`, the lowest without attention but in its middle."""
    levels = len(widths)
    return {
        "in_channels": 9,  # noisy latents, mask, latents of the masked picture
        "out_channels": 4,
        "sample_size": sample_size,
        "block_out_channels": list(widths),
        "down_block_types": ["CrossAttnDownBlock2D"] * (levels - 1) + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * (levels - 1),
        "layers_per_block": 1,
        "cross_attention_dim": context_width,
        "attention_head_dim": 4,  # of heads there are four: the key is misnamed in every checkpoint
        "norm_num_groups": groups,
    }


def vae_config(widths: Sequence[int], *, groups: int, sample_size: int) -> dict[str, Any]:
    """An autoencoder of four levels. Without attention in its middle it is convolutions alone, so that small crops
    teach it all it needs for large pictures."""
    return {
        "block_out_channels": list(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": 1,
        "latent_channels": 4,
        "norm_num_groups": groups,
        "mid_block_add_attention": False,
        "sample_size": sample_size,
    }


def text_config(width: int, layers: int, entries: int) -> dict[str, Any]:
    """A CLIP text encoder for a vocabulary of `entries`, the last two of which are the marks of begin and end."""
    begin, end = entries - 2, entries - 1
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_LENGTH,
        "projection_dim": width,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "torch_dtype": "float32",  # as the real one has it: else transformers takes the file's type, unlike diffusers
        "vocab_size": entries,
        "bos_token_id": begin,
        "eos_token_id": end,
        "pad_token_id": end,
    }


def write_checkpoint(
    folder: Path,
    *,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    text_settings: Mapping[str, Any],
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write everything but the tokenizer, whose folder is written first; weights in `dtype`."""
    stem = "diffusion_pytorch_model"
    for part, model in (("unet", unet), ("vae", vae)):
        settings = {**model.config, "_class_name": type(model).__name__, "_diffusers_version": WRITTEN_AS}
        write_part(folder / part, settings, model.state_dict(), stem, dtype)
    # transformers 5 took the level `text_model` out of its class; the files of every checkpoint have it
    named = {f"text_model.{name}": tensor for name, tensor in text_encoder.state_dict().items()}
    write_part(folder / "text_encoder", text_settings, named, "model", dtype)
    (folder / "scheduler").mkdir(exist_ok=True)
    save_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    save_json(folder / "model_index.json", INDEX)


def write_part(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], stem: str, dtype: torch.dtype
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_json(folder / "config.json", settings)
    owned = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    save_file(owned, folder / f"{stem}.safetensors", metadata={"format": "pt"})


INDEX: Final[Mapping[str, Any]] = {
    "_class_name": "StableDiffusionInpaintPipeline",
    "_diffusers_version": WRITTEN_AS,
    "feature_extractor": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def new_text_encoder(settings: Mapping[str, Any]) -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**settings))
