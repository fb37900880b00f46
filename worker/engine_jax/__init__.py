"""The Flax twin: the pipeline on JAX, compiled once for each shape, over many devices (extra `jax`). See README.md.

Importing it imports jax and torchax, so nothing else in this project does.
"""

from worker.engine_jax.devices import replicate, shard, unreplicate, unshard
from worker.engine_jax.output import FlaxStableDiffusionPipelineOutput
from worker.engine_jax.pipeline import FlaxStableDiffusionInpaintPipeline

__all__ = [
    "FlaxStableDiffusionInpaintPipeline",
    "FlaxStableDiffusionPipelineOutput",
    "replicate",
    "shard",
    "unreplicate",
    "unshard",
]
