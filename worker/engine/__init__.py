"""The diffusion engine: torch, transformers' CLIP and safetensors, and nothing of the farm.

`from worker.engine import StableDiffusionInpaintPipeline` gives the drop-in twin of diffusers' class of that name.
"""

from importlib import import_module
from typing import Any

_EXPORTS = {
    "InpaintEngine": "worker.engine.engine",
    "StableDiffusionInpaintPipeline": "worker.engine.pipeline",
    "StableDiffusionPipelineOutput": "worker.engine.pipeline",
    "UNet2DConditionModel": "worker.engine.unet",
    "AutoencoderKL": "worker.engine.vae",
    "AsymmetricAutoencoderKL": "worker.engine.vae_asymmetric",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    # Lazy: `farm-worker --help` must not wait for torch.
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
