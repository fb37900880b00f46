"""CLIP as transformers has it (Radford et al. 2021, https://arxiv.org/abs/2103.00020), loaded as strictly as the rest.

transformers itself draws random numbers for a tensor that is missing and goes on; here that raises.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    PreTrainedModel,
)

from worker.engine.config import load_json
from worker.engine.errors import CheckpointInvalid
from worker.engine.model import check_tensors
from worker.engine.weights_file import find_weights, read_weights

CLIP_TOKENS = 77  # what every CLIP text encoder was trained with

_Clip = TypeVar("_Clip", bound=PreTrainedModel)


def load_text_encoder(
    folder: Path, torch_dtype: torch.dtype | None = None, variant: str | None = None
) -> CLIPTextModel:
    """`config.json` and `model.safetensors` of a folder. Raises `CheckpointInvalid`, `UnsafeWeightsFormat`."""
    config = CLIPTextConfig.from_dict(load_json(folder / "config.json"))
    return text_encoder(config, read_weights(find_weights(folder, "model", variant)), torch_dtype, str(folder))


def text_encoder(
    config: CLIPTextConfig, tensors: Mapping[str, Tensor], torch_dtype: torch.dtype | None, where: str
) -> CLIPTextModel:
    """The text encoder of that configuration with `tensors`, named as any release of transformers does."""
    # releases before 5 put `text_model.` before every name
    named = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    return _filled(CLIPTextModel, config, named, torch_dtype, where)


def load_image_encoder(
    folder: Path, torch_dtype: torch.dtype | None = None, variant: str | None = None
) -> CLIPVisionModelWithProjection:
    """The image encoder that image prompts need. Raises `CheckpointInvalid`, `UnsafeWeightsFormat`."""
    config = CLIPVisionConfig.from_dict(load_json(folder / "config.json"))
    tensors = read_weights(find_weights(folder, "model", variant))
    return _filled(CLIPVisionModelWithProjection, config, tensors, torch_dtype, str(folder))


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's tokenizer: `vocab.json` and `merges.txt`, or `tokenizer.json`. Raises `CheckpointInvalid`.

    A folder that does not say how many tokens fit (transformers 5 leaves it out) means 77.
    """
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise CheckpointInvalid(f"{folder} holds neither tokenizer.json nor vocab.json and merges.txt")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointInvalid(f"{folder} holds no tokenizer that can be read: {error}") from error
    if tokenizer.model_max_length > 1_000_000:  # transformers' way to say that nobody said
        tokenizer.model_max_length = CLIP_TOKENS
    return tokenizer


def load_feature_extractor(folder: Path) -> CLIPImageProcessorPil:
    """How pictures are prepared for CLIP, always with Pillow, so that no library's presence changes a result."""
    return CLIPImageProcessorPil.from_dict(load_json(folder / "preprocessor_config.json"))


def _filled(
    kind: type[_Clip], config: object, tensors: Mapping[str, Tensor], dtype: torch.dtype | None, where: str
) -> _Clip:
    with torch.device("meta"):
        model = kind(config)
    # a table of 0, 1, 2 … that old releases stored among the weights
    stored = {name: tensor for name, tensor in tensors.items() if not name.endswith("position_ids")}
    check_tensors({name: t.shape for name, t in model.state_dict().items()}, stored, where)
    model.load_state_dict({name: t.to(dtype=dtype) for name, t in stored.items()}, assign=True)
    for module in model.modules():
        if "position_ids" in dict(module.named_buffers(recurse=False)):
            positions = torch.arange(module.position_ids.shape[-1])[None]
            module.register_buffer("position_ids", positions, persistent=False)
    return model.eval()
