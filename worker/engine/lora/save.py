"""Writing LoRA layers to a file in diffusers' format, which diffusers and this package read back."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn

from worker.engine.errors import InvalidParameter
from worker.engine.lora.file import WEIGHT_NAMES
from worker.engine.lora.formats.peft import METADATA_KEY

Layers = nn.Module | Mapping[str, Tensor]


def save_lora_weights(
    save_directory: str | os.PathLike[str],
    unet_lora_layers: Layers | None = None,
    text_encoder_lora_layers: Layers | None = None,
    is_main_process: bool = True,
    weight_name: str | None = None,
    save_function: Callable[[dict[str, Tensor], str], None] | None = None,
    safe_serialization: bool = True,
    unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
    text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save layers (`….lora_A.weight`: Tensor, without the component's name) as `save_directory`/`weight_name`.

    The adapters' metadata is the dict of their PEFT configs; without it a scale of 1 is understood.
    `is_main_process` False writes nothing. Raises `InvalidParameter`: nothing to save, a path that is no folder, or
    `safe_serialization` False, since a pickle is a program.
    """
    if not safe_serialization:
        raise InvalidParameter("safe_serialization", "must be True: LoRAs are saved as safetensors only")
    folder = Path(save_directory)
    if folder.is_file():
        raise InvalidParameter("save_directory", f"must be a folder, and {folder} is a file")
    parts = {
        "unet": (unet_lora_layers, unet_lora_adapter_metadata),
        "text_encoder": (text_encoder_lora_layers, text_encoder_lora_adapter_metadata),
    }
    tensors: dict[str, Tensor] = {}
    configs: dict[str, Any] = {}
    for component, (layers, config) in parts.items():
        state = layers.state_dict() if isinstance(layers, nn.Module) else layers or {}
        # Copies, since layers that share memory could not be written.
        tensors |= {f"{component}.{key}": tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
        configs |= {f"{component}.{key}": value for key, value in (config or {}).items() if state}
    if not tensors:
        raise InvalidParameter("unet_lora_layers", "or `text_encoder_lora_layers` must be given, with layers in it")
    if not is_main_process:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (weight_name or WEIGHT_NAMES[0])
    if save_function is not None:
        save_function(tensors, str(path))
        return
    metadata = {"format": "pt"}
    if configs:
        metadata[METADATA_KEY] = json.dumps(configs, sort_keys=True, indent=2, default=_plain)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(tensors, unfinished, metadata)
    unfinished.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    raise InvalidParameter("unet_lora_adapter_metadata", f"must hold plain data, and has {value!r}")
