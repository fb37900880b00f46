"""Options that diffusers' loaders take, and that mean nothing for safetensors files that are here already."""

from collections.abc import Mapping
from typing import Any

from worker.engine.errors import InvalidParameter, UnsafeWeightsFormat

# Where to download from and how to hold memory while loading: no effect on files that are here already.
WITHOUT_EFFECT = frozenset(
    {
        *("cache_dir", "force_download", "proxies", "local_files_only", "token", "hf_token", "revision", "mirror"),
        *("low_cpu_mem_usage", "disable_mmap", "offload_state_dict", "user_agent"),
    }
)


def require_known(options: Mapping[str, Any]) -> None:
    """Raise InvalidParameter for options that would change what is loaded and that we do not have."""
    if options.get("use_safetensors") is False:
        raise UnsafeWeightsFormat("weights are read from safetensors only: leave `use_safetensors` out")
    unknown = sorted(options.keys() - WITHOUT_EFFECT - {"use_safetensors"})
    if unknown:
        raise InvalidParameter(unknown[0], "is no option here: remove it")
