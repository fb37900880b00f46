"""A small checkpoint with random weights, in the layout of Stable Diffusion 1.5 inpainting, and LoRAs for it.

    model_index.json  unet/  vae/  text_encoder/  tokenizer/  scheduler/

Every part is of the real kind and small; the scheduler is told that the UNet predicts the picture itself, which is
what lets random weights paint at all. Equal seeds give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from worker.demo.vocabulary import MAX_LENGTH, write_tokenizer
from worker.demo.weights import fill
from worker.engine.errors import InvalidParameter
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL

_WRITTEN_AS = "0.42.1"  # the diffusers release whose format this is

UNET: Final[Mapping[str, Any]] = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": _WRITTEN_AS,
    "sample_size": 32,
    "out_channels": 4,
    "block_out_channels": [64, 96, 160],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "layers_per_block": 1,
    "cross_attention_dim": 96,
    "attention_head_dim": 4,
    "norm_num_groups": 16,
}

VAE: Final[Mapping[str, Any]] = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": _WRITTEN_AS,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [16, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 256,
    "scaling_factor": 0.18215,
}

TEXT_ENCODER: Final[Mapping[str, Any]] = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "hidden_size": 96,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": MAX_LENGTH,
    "projection_dim": 96,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}

SCHEDULER: Final[Mapping[str, Any]] = {
    "_class_name": "DDIMScheduler",
    "_diffusers_version": _WRITTEN_AS,
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "sample",
}

LORAS: Final = {"amber": 4, "cobalt": 8, "fern": 8, "plum": 16}  # name → rank
_LORA_LAYERS = ("to_q", "to_k", "to_v", "to_out.0")


def make_checkpoint(folder: Path, *, seed: int = 0, in_channels: int = 9) -> None:
    """Write a checkpoint into `folder`, which must not exist yet.

    `in_channels`: 9 for a UNet that sees mask and masked image, 4 for one that sees the latents alone.
    Raises InvalidParameter for any other number.
    """
    if in_channels not in (4, 9):
        raise InvalidParameter("in_channels", f"must be 9 (inpainting) or 4 (plain), not {in_channels}")
    generator = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True)
    entries = write_tokenizer(folder / "tokenizer")
    begin, end = entries - 2, entries - 1
    marks = {"vocab_size": entries, "bos_token_id": begin, "eos_token_id": end, "pad_token_id": end}
    text = {**TEXT_ENCODER, **marks}
    encoder = CLIPTextModel(CLIPTextConfig(**text))
    fill(encoder, generator)
    # transformers 5 took the level `text_model` out of its class; the files of every checkpoint have it
    _write(folder / "text_encoder", text, {f"text_model.{k}": v for k, v in encoder.state_dict().items()}, "model")

    for part, cls, config in (
        ("unet", UNet2DConditionModel, {**UNET, "in_channels": in_channels}),
        ("vae", AutoencoderKL, VAE),
    ):
        network = cls.from_config(config)
        fill(network, generator)
        _write(folder / part, config, network.state_dict(), "diffusion_pytorch_model")

    (folder / "scheduler").mkdir()
    _write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    _write_json(
        folder / "model_index.json",
        _index("StableDiffusionInpaintPipeline" if in_channels == 9 else "StableDiffusionPipeline"),
    )


def make_loras(
    folder: Path, checkpoint: Path, *, seed: int = 0, names: Sequence[str] = tuple(LORAS), strength: float = 1.0
) -> list[Path]:
    """Write a LoRA `<name>.safetensors` for each name into `folder`, and return their paths.

    They change every attention projection of the UNet in `checkpoint`; at scale 1 the change is `strength` times as
    large as the weight itself (in the Frobenius norm, on average). A name outside LORAS gets rank 8.
    """
    config = json.loads((checkpoint / "unet" / "config.json").read_text("utf-8"))
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    projections = {
        path: module.weight.shape
        for path, module in unet.named_modules()
        if isinstance(module, torch.nn.Linear) and path.endswith(_LORA_LAYERS)
    }
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for place, name in enumerate(names):
        generator = torch.Generator().manual_seed(seed + 1 + place)
        rank = LORAS.get(name, 8)
        tensors = {}
        for path, (wide, narrow) in projections.items():
            tensors[f"unet.{path}.lora_A.weight"] = torch.randn(rank, narrow, generator=generator) / narrow**0.5
            tensors[f"unet.{path}.lora_B.weight"] = strength * torch.randn(wide, rank, generator=generator) / rank**0.5
        paths.append(folder / f"{name}.safetensors")
        save_file(tensors, paths[-1], metadata={"format": "pt"})
    return paths


def _index(pipeline: str) -> dict[str, Any]:
    return {
        "_class_name": pipeline,
        "_diffusers_version": _WRITTEN_AS,
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], stem: str) -> None:
    folder.mkdir()
    _write_json(folder / "config.json", config)
    owned = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(owned, folder / f"{stem}.safetensors", metadata={"format": "pt"})


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
