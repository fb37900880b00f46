"""Checkpoint folders in the layout of diffusers: `model_index.json` and a folder for each component.

Loading is strict: what is missing, left over, misshapen, unknown or unsafe raises and is named.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel

from worker.engine import text
from worker.engine.config import load_json, save_json
from worker.engine.errors import CheckpointInvalid
from worker.engine.model import Model
from worker.engine.safety import StableDiffusionSafetyChecker
from worker.engine.schedulers import SCHEDULERS
from worker.engine.schedulers import from_config as load_scheduler
from worker.engine.unet import UNet2DConditionModel
from worker.engine.vae import AutoencoderKL
from worker.engine.vae_asymmetric import AsymmetricAutoencoderKL
from worker.engine.weights_file import find_weights, read_weights, write_safetensors

LAYOUT_VERSION = "0.42.1"  # the release of diffusers whose layout we write
_MODEL_STEM = "diffusion_pytorch_model"
Loader: TypeAlias = Callable[[Path, torch.dtype | None, str | None], Any]  # (folder, torch_dtype, variant)


def load_model(
    kind: type[Model], folder: Path, torch_dtype: torch.dtype | None = None, variant: str | None = None
) -> Model:
    """A network of ours from `config.json` and its weights. Raises `CheckpointInvalid`, `UnsafeWeightsFormat`."""
    config = load_json(folder / "config.json")
    tensors = read_weights(find_weights(folder, _MODEL_STEM, variant))
    return kind.from_weights(config, tensors, torch_dtype, where=str(folder))


def save_model(model: Model, folder: Path, variant: str | None = None) -> None:
    """Write `config.json` and `diffusion_pytorch_model[.variant].safetensors`; diffusers can read both."""
    folder.mkdir(parents=True, exist_ok=True)
    marks = {"_class_name": type(model).__name__, "_diffusers_version": LAYOUT_VERSION}
    save_json(folder / "config.json", {**model.config, **marks})
    middle = f".{variant}" if variant else ""
    # an IP-Adapter that is loaded is no part of the model
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("ip_adapters.")}
    write_safetensors(folder / f"{_MODEL_STEM}{middle}.safetensors", own)


def _network(kind: type[Model]) -> Loader:
    return lambda folder, torch_dtype, variant: load_model(kind, folder, torch_dtype, variant)


def _weightless(load: Callable[[Path], Any]) -> Loader:
    return lambda folder, torch_dtype, variant: load(folder)


# For each component the classes we run, and what loads each.
_COMPONENTS: Mapping[str, Mapping[str, Loader]] = {
    "unet": {"UNet2DConditionModel": _network(UNet2DConditionModel)},
    "vae": {
        "AutoencoderKL": _network(AutoencoderKL),
        "AsymmetricAutoencoderKL": _network(AsymmetricAutoencoderKL),
    },
    "text_encoder": {"CLIPTextModel": text.load_text_encoder},
    "tokenizer": dict.fromkeys(("CLIPTokenizer", "CLIPTokenizerFast"), _weightless(text.load_tokenizer)),
    "scheduler": {name: _weightless(partial(load_scheduler, _class_name=name)) for name in SCHEDULERS},
    "safety_checker": {"StableDiffusionSafetyChecker": StableDiffusionSafetyChecker.from_pretrained},
    "feature_extractor": dict.fromkeys(
        ("CLIPImageProcessor", "CLIPFeatureExtractor", "CLIPImageProcessorPil"),
        _weightless(text.load_feature_extractor),
    ),
    "image_encoder": {"CLIPVisionModelWithProjection": text.load_image_encoder},
}
_REQUIRED = ("unet", "vae", "scheduler")


def load_components(
    folder: str | Path,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    without: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Every component of a checkpoint by name, on the CPU, in `torch_dtype` (`None`: as stored); absent ones are None.

    With a `variant` (say "fp16") each component that has weights of that name gives those, the others their plain ones.
    Components named in `without` are not loaded and not in the result.
    Raises `CheckpointInvalid` and `UnsafeWeightsFormat`, naming what is wrong.
    """
    folder = Path(folder)
    index = read_index(folder)
    if variant and not any(folder.glob(f"*/*.{variant}*")):
        raise CheckpointInvalid(f"{folder} has no weights of the variant {variant!r}; leave `variant` out")
    wanted = [name for name in _COMPONENTS if name not in without]
    return {name: _load(folder, name, index.get(name), torch_dtype, variant) for name in wanted}


def load_component(
    folder: str | Path, name: str, torch_dtype: torch.dtype | None = None, variant: str | None = None
) -> Any:
    """One component of a checkpoint, or None where its index says that there is none. Raises as `load_components`."""
    if name not in _COMPONENTS:
        raise CheckpointInvalid(f"there is no component {name!r}; there are {', '.join(_COMPONENTS)}")
    folder = Path(folder)
    return _load(folder, name, read_index(folder).get(name), torch_dtype, variant)


def component_names() -> tuple[str, ...]:
    return tuple(_COMPONENTS)


def read_index(folder: Path) -> dict[str, str]:
    """`model_index.json` as component → class name, those that are present only; checked against what we run."""
    if not folder.is_dir():
        raise CheckpointInvalid(f"{folder} is not a folder; pass a checkpoint folder in the layout of diffusers")
    index: dict[str, str] = {}
    for name, entry in load_json(folder / "model_index.json").items():
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] is None:
            continue  # an option of the pipeline, or a component that is absent
        if name not in _COMPONENTS:
            raise CheckpointInvalid(
                f"{folder} has a component `{name}`, which a Stable Diffusion 1 or 2 pipeline has not"
            )
        if entry[1] not in _COMPONENTS[name]:
            known = ", ".join(_COMPONENTS[name])
            raise CheckpointInvalid(f"{folder}: `{name}` is a {entry[1]!r}, which we do not run; we run {known}")
        index[name] = entry[1]
    if missing := [name for name in _REQUIRED if name not in index]:
        raise CheckpointInvalid(f"{folder / 'model_index.json'} does not name {', '.join(missing)}")
    return index


def read_options(folder: str | Path) -> dict[str, Any]:
    """The pipeline's own options in `model_index.json`, such as `requires_safety_checker`."""
    entries = load_json(Path(folder) / "model_index.json").items()
    return {name: value for name, value in entries if not name.startswith("_") and not isinstance(value, list)}


def _load(folder: Path, name: str, kind: str | None, torch_dtype: torch.dtype | None, variant: str | None) -> Any:
    if kind is None:
        return None
    part, load = folder / name, _COMPONENTS[name][kind]
    if not part.is_dir():
        raise CheckpointInvalid(f"{part} is missing, and model_index.json names it")
    has_variant = variant is not None and any(part.glob(f"*.{variant}*"))
    return load(part, torch_dtype, variant if has_variant else None)


def save_components(
    folder: str | Path,
    components: Mapping[str, Any],
    *,
    class_name: str = "StableDiffusionInpaintPipeline",
    options: Mapping[str, Any] | None = None,
    variant: str | None = None,
) -> None:
    """Write a checkpoint folder that `load_components` and diffusers read back; None is left out."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    index: dict[str, Any] = {"_class_name": class_name, "_diffusers_version": LAYOUT_VERSION, **(options or {})}
    for name, component in components.items():
        if component is None:
            index[name] = [None, None]
            continue
        index[name] = _class_of(name, component)
        if isinstance(component, Model):
            save_model(component, folder / name, variant)
        elif isinstance(component, PreTrainedModel):
            component.save_pretrained(folder / name, variant=variant)
        else:
            component.save_pretrained(folder / name)
    save_json(folder / "model_index.json", index)


def _class_of(name: str, component: Any) -> list[str]:
    """[library, class] under which diffusers will look for it."""
    kind = type(component).__name__
    if name == "safety_checker":
        return ["stable_diffusion", kind]
    if name == "feature_extractor":
        return ["transformers", "CLIPImageProcessor"]
    return ["transformers" if type(component).__module__.startswith("transformers") else "diffusers", kind]
