"""One original `.safetensors` file (`model.diffusion_model.…`) as the components of a pipeline."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextConfig

from worker.engine import checkpoints, ldm_architecture, ldm_names, text
from worker.engine.config import load_json
from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL
from worker.engine.weights_file import read_safetensors

_UNET = "model.diffusion_model."
_VAE = "first_stage_model."
_CLIP = "cond_stage_model.transformer."
_OPEN_CLIP = "cond_stage_model.model."
_IN_THE_FILE = ("unet", "vae", "text_encoder")


def load_single_file(
    path: str | Path,
    config: str | Path | None = None,
    torch_dtype: torch.dtype | None = None,
    **given: Any,
) -> dict[str, Any]:
    """Every component by name, as `load_components` gives them, out of one file in the naming of latent-diffusion.

    `config`: a folder in the layout of diffusers, whose weights are not needed. It gives tokenizer, scheduler, feature
    extractor and every network's config.json; only `in_channels` is always the file's, so that one folder serves plain
    and inpaint models. Without it the architecture is read off the weights, and `tokenizer` and `scheduler` have to be
    among the components `given`, since no file of this kind holds them. There is no safety checker but a given one.
    Raises `InvalidParameter`, `CheckpointInvalid`, `UnsafeWeightsFormat`.
    """
    unknown = given.keys() - checkpoints.component_names()
    if unknown:
        raise InvalidParameter(min(unknown), f"is no component; there are {', '.join(checkpoints.component_names())}")
    path, folder = Path(path), None if config is None else Path(config)
    if folder is None and (missing := [name for name in ("tokenizer", "scheduler") if name not in given]):
        raise InvalidParameter(
            "config",
            f"is needed, since {path.name} holds no {' and no '.join(missing)}: pass the folder of a checkpoint of the "
            f"same family in the layout of diffusers, or {' and '.join(f'{name}=…' for name in missing)}",
        )
    tensors = read_safetensors(path)
    if not any(name.startswith(_UNET) for name in tensors):
        raise CheckpointInvalid(
            f"{path} is no checkpoint in the naming of latent-diffusion: no tensor begins with {_UNET}; "
            f"it holds {', '.join(sorted(tensors)[:3])} …"
        )
    loaders = {"unet": _unet, "vae": _vae, "text_encoder": _text_encoder}
    parts: dict[str, Any] = {}
    for name in checkpoints.component_names():
        if name in given:
            parts[name] = given[name]
        elif name in loaders:
            parts[name] = loaders[name](tensors, folder and folder / name / "config.json", torch_dtype, str(path))
        elif folder is None or name == "safety_checker":
            parts[name] = None
        else:
            parts[name] = checkpoints.load_component(folder, name, torch_dtype)
    return parts


def _unet(
    tensors: Mapping[str, Tensor], config: Path | None, dtype: torch.dtype | None, where: str
) -> UNet2DConditionModel:
    part = _part(tensors, _UNET, where)
    entries = load_json(config) if config else ldm_architecture.unet_config(part)
    if "input_blocks.0.0.weight" in part:
        entries["in_channels"] = part["input_blocks.0.0.weight"].shape[1]
    with torch.device("meta"):
        wanted = UNet2DConditionModel(**entries).state_dict()
    return UNet2DConditionModel.from_weights(entries, ldm_names.unet_tensors(part, wanted), dtype, f"{where}: UNet")


def _vae(tensors: Mapping[str, Tensor], config: Path | None, dtype: torch.dtype | None, where: str) -> AutoencoderKL:
    part = _part(tensors, _VAE, where)
    entries = load_json(config) if config else ldm_architecture.vae_config(part)
    return AutoencoderKL.from_weights(entries, ldm_names.vae_tensors(part), dtype, f"{where}: autoencoder")


def _text_encoder(tensors: Mapping[str, Tensor], config: Path | None, dtype: torch.dtype | None, where: str) -> Any:
    open_clip = any(name.startswith(_OPEN_CLIP) for name in tensors)
    part = _part(tensors, _OPEN_CLIP if open_clip else _CLIP, where)
    entries = load_json(config) if config else None
    if open_clip:
        blocks = {int(match[1]) for name in part if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name))}
        part = ldm_names.open_clip_tensors(part, entries["num_hidden_layers"] if entries else max(blocks, default=0))
    else:
        part = {name.removeprefix("text_model."): tensor for name, tensor in part.items()}
    entries = entries or ldm_architecture.text_config(part, open_clip=open_clip)
    return text.text_encoder(CLIPTextConfig.from_dict(entries), part, dtype, f"{where}: text encoder")


def _part(tensors: Mapping[str, Tensor], prefix: str, where: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not part:
        raise CheckpointInvalid(
            f"{where} has no tensors below {prefix}: it was stored without that part; load the part from elsewhere and "
            f"pass it by name ({', '.join(f'{name}=…' for name in _IN_THE_FILE)})"
        )
    return part
