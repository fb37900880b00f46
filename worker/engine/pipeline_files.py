"""A pipeline from disk and to disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from worker.engine.checkpoints import load_component, read_index, read_options, save_components
from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.loading_options import require_known
from worker.engine.pipeline_adapters import PipelineAdapters
from worker.engine.single_file import load_single_file


def dtype_of(name: str, dtype: torch.dtype | Mapping[str, torch.dtype] | None) -> torch.dtype:
    """A component's dtype: its own in a mapping, or the mapping's "default"; float32 where nothing is said."""
    if isinstance(dtype, Mapping):
        dtype = dtype.get(name, dtype.get("default"))
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise InvalidParameter("torch_dtype", f"has to be a torch.dtype, or one for each component, not {dtype!r}")
    return torch.float32 if dtype is None else dtype


class PipelineFiles(PipelineAdapters):
    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        torch_dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        dtype: torch.dtype | Mapping[str, torch.dtype] | None = None,
        variant: str | None = None,
        requires_safety_checker: bool | None = None,
        **options: Any,
    ) -> Self:
        """A pipeline from a checkpoint folder in diffusers' layout, on the CPU; float32 unless a dtype is given.

        Parts given by name (`scheduler=…`, `safety_checker=None`) are taken as they are instead of loaded. Weights are
        safetensors; with a `variant` ("fp16") those of that name where there are any.

        Raises CheckpointInvalid, UnsafeWeightsFormat, and InvalidParameter for an option that does not exist.
        """
        folder, dtype = Path(pretrained_model_name_or_path), torch_dtype if dtype is None else dtype
        given = {name: options.pop(name) for name in cls.component_names() if name in options}
        require_known(options)
        index = read_index(folder)
        if variant is not None and not any(folder.glob(f"*/*.{variant}*")):
            raise CheckpointInvalid(f"{folder} has no weights of the variant {variant!r}; leave `variant` out")
        loaded = {
            name: load_component(folder, name, dtype_of(name, dtype), variant)
            for name in cls.component_names()
            if name in index and name not in given
        }
        if requires_safety_checker is None:
            requires_safety_checker = read_options(folder).get("requires_safety_checker", True)
        parts = {**dict.fromkeys(cls.component_names()), **loaded, **given}
        return cls(**parts, requires_safety_checker=requires_safety_checker)

    @classmethod
    def from_single_file(
        cls,
        pretrained_model_link_or_path: str | Path,
        *,
        config: str | Path | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        requires_safety_checker: bool = True,
        **options: Any,
    ) -> Self:
        """A pipeline from one original `.safetensors` file; float32 unless a dtype is given.

        `config` is a folder in diffusers' layout with tokenizer, scheduler and configurations; without one the
        architecture is read off the weights, and `tokenizer=` and `scheduler=` have to be given.

        Raises CheckpointInvalid, UnsafeWeightsFormat, and InvalidParameter for an option that does not exist.
        """
        given = {name: options.pop(name) for name in cls.component_names() if name in options}
        require_known(options)
        dtype = dtype_of("default", torch_dtype if dtype is None else dtype)
        parts = load_single_file(pretrained_model_link_or_path, config, dtype, **given)
        return cls(**parts, requires_safety_checker=requires_safety_checker)

    def save_pretrained(self, save_directory: str | Path, safe_serialization: bool = True, variant: str | None = None):
        """Write a checkpoint folder that `from_pretrained` and diffusers read back.

        Raises InvalidParameter for `safe_serialization=False`, since a pickle is a program.
        """
        if not safe_serialization:
            raise InvalidParameter("safe_serialization", "must be True: weights are saved as safetensors only")
        # What is fused is saved; what merely acts is not.
        with self.lora.scaled(0.0):
            save_components(
                save_directory,
                self.components,
                class_name=type(self).__name__,
                options=self.parameters,
                variant=variant,
            )
