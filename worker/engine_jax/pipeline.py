"""FlaxStableDiffusionInpaintPipeline: parameters apart from the pipeline, one compiled program a shape, many devices.

The interface is diffusers' 0.26, the last documented one; README.md says where this one differs.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jax import Array
from PIL import Image

from worker.engine.components import default_sample_size
from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.guidance import is_guided
from worker.engine.image_processor import numpy_to_pil
from worker.engine.lora import Adapter
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine.schedulers import Scheduler
from worker.engine.vae import AutoencoderKL
from worker.engine_jax.bridge import Params, parameters
from worker.engine_jax.devices import mesh, unshard
from worker.engine_jax.inputs import pictures_of, token_ids
from worker.engine_jax.loras import LoraParams
from worker.engine_jax.output import FlaxStableDiffusionPipelineOutput
from worker.engine_jax.programs import Programs, Rows
from worker.engine_jax.safety import JaxSafetyChecker
from worker.engine_jax.step_table import require_deterministic, step_table

AllParams: TypeAlias = dict[str, Params]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class FlaxStableDiffusionInpaintPipeline:
    """Repaint what a mask marks, as a text says. Not for two threads at once.

    The parts are the torch engine's; they stay on the CPU, and what computes is `params`.
    """

    numpy_to_pil = staticmethod(numpy_to_pil)

    def __init__(
        self, vae, text_encoder, tokenizer, unet, scheduler, safety_checker, feature_extractor, dtype: Any = jnp.float32
    ):
        """`dtype`: of the start noise and of the parts given. Raises CheckpointInvalid as `from_pretrained` does."""
        parts = {"vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "unet": unet, "scheduler": scheduler}
        self._set_up(
            StableDiffusionInpaintPipeline(
                **parts, safety_checker=safety_checker, feature_extractor=feature_extractor
            ).to(torch_dtype(dtype))
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, dtype: Any = jnp.float32, **options: Any
    ) -> tuple[Self, AllParams]:
        """(pipeline, params) from a checkpoint folder in diffusers' layout, weights in `dtype`.

        `params`: arrays by component (unet, vae, text_encoder, and safety_checker where there is one) and name, on
        JAX's first device. Parts given by name (`scheduler=…`, `safety_checker=None`) are taken instead of loaded.

        Raises CheckpointInvalid (also for a model that this back end does not run: a UNet without mask channels, one
        that takes guidance as an input, a decoder that looks at the picture), UnsafeWeightsFormat, InvalidParameter.
        """
        host = StableDiffusionInpaintPipeline.from_pretrained(
            pretrained_model_name_or_path, torch_dtype=torch_dtype(dtype), **options
        )
        pipeline = cls.__new__(cls)
        pipeline._set_up(host)
        return pipeline, pipeline.params()

    def _set_up(self, host: StableDiffusionInpaintPipeline) -> None:
        _require_known(host)
        self.host = host
        self.vae_scale_factor = host.vae_scale_factor
        self.programs = Programs(host)
        self._loras = LoraParams(host)
        self._safety = None
        if host.safety_checker is not None:
            self._safety = JaxSafetyChecker(host.safety_checker, host.feature_extractor)

    @property
    def scheduler(self) -> Scheduler:
        """Any that draws no noise at its steps; another may be set, and compiles nothing anew."""
        return self.host.scheduler

    @scheduler.setter
    def scheduler(self, scheduler: Scheduler) -> None:
        require_deterministic(scheduler)
        self.host.scheduler = scheduler

    def params(self) -> AllParams:
        """The parts' weights as arrays of their own."""
        parts = ("unet", "vae", "text_encoder", "safety_checker")
        return {name: parameters(part) for name in parts if (part := getattr(self.host, name)) is not None}

    def with_loras(self, params: AllParams, adapters: Iterable[Adapter]) -> AllParams:
        """The base's `params` with these LoRAs in them: see `LoraParams.merged`."""
        return self._loras.merged(params, adapters)

    def prepare_inputs(
        self,
        prompt: str | list[str],
        image: Image.Image | list[Image.Image],
        mask: Image.Image | list[Image.Image],
    ) -> tuple[np.ndarray, Array, Array]:
        """(token ids ``[B, 77]``, masked images ``[B, 3, H, W]`` in −1..1, masks ``[B, 1, H, W]`` of 0 and 1).

        White in the mask is what is repainted. Sides are cut to multiples of 32. Raises InvalidParameter.
        """
        return self.token_ids(prompt), *pictures_of(image, mask)

    def token_ids(self, prompt: str | list[str]) -> np.ndarray:
        """``[B, 77]``, also for `neg_prompt_ids`."""
        return token_ids(prompt, self.host.tokenizer, self.host.text_encoder)

    def __call__(
        self,
        prompt_ids: Any,
        mask: Any,
        masked_image: Any,
        params: AllParams,
        prng_seed: Array,
        num_inference_steps: int = 50,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | Any = 7.5,
        latents: Any = None,
        neg_prompt_ids: Any = None,
        return_dict: bool = True,
        jit: bool = False,
    ) -> FlaxStableDiffusionPipelineOutput | tuple[np.ndarray, list[bool] | None]:
        """Pictures of what `prepare_inputs` made.

        With `jit` everything comes as `shard` left it, ``[devices, n, …]``, with a key for each device in `prng_seed`
        and `params` replicated, and goes over all devices; without it everything is ``[B, …]`` and one key, on one.
        It is compiled either way, once for each shape and for guidance on or off.

        height, width: multiples of 8; default the UNet's `sample_size` times 8. Pictures of another size are resized.
        guidance_scale: a number, of which 1 and less means none, or one for each picture.
        latents: ``[…, 4, h, w]`` start noise, instead of drawing it from `prng_seed`.
        neg_prompt_ids: like `prompt_ids`; default the empty text.
        return_dict: False gives a plain tuple.

        Raises InvalidParameter with the argument's name, and FeatureUnavailable for a scheduler that draws noise.
        """
        side = default_sample_size(self.host.unet) * self.vae_scale_factor
        height, width = height or side, width or side
        factor, channels = self.vae_scale_factor, self.host.vae.config.latent_channels
        if height % factor or width % factor:
            raise InvalidParameter("height", f"and `width` have to be divisible by {factor}, not {height} and {width}")
        if np.ndim(prompt_ids) != (3 if jit else 2):
            asked = "as `shard` gives it, [devices, n, 77], with `jit`" if jit else "[B, 77] without `jit`"
            raise InvalidParameter("prompt_ids", f"is of shape {np.shape(prompt_ids)} and has to be {asked}")
        neg_prompt_ids, scales = self._guidance(prompt_ids, neg_prompt_ids, guidance_scale)
        rows = Rows(prompt_ids, neg_prompt_ids, mask, masked_image, scales, latents, prng_seed)
        _check_rows(rows, np.shape(prompt_ids)[:-1], (channels, height // factor, width // factor))
        table = step_table(self.scheduler, num_inference_steps)
        devices = mesh() if jit else mesh(1)
        if not jit:
            rows = jax.tree.map(lambda x: x[None], rows)
        networks = {name: part for name, part in params.items() if name != "safety_checker"}
        made = np.asarray(self.programs.generate(devices, networks, rows, table, height=height, width=width))
        images, flags = self._judged(made, params)
        images = images if jit else images[0]
        if not return_dict:
            return images, flags
        return FlaxStableDiffusionPipelineOutput(images=images, nsfw_content_detected=flags)

    def _guidance(self, prompt_ids: Any, neg_prompt_ids: Any, scale: Any) -> tuple[Any, np.ndarray]:
        """(unconditional tokens, or None for no guidance; a scale for each picture)."""
        leading = np.shape(prompt_ids)[:-1]
        scales = np.broadcast_to(np.asarray(scale, np.float32), leading)
        if np.ndim(scale) == 0 and not is_guided(float(scale), None):
            return None, scales
        if neg_prompt_ids is None:
            neg_prompt_ids = np.broadcast_to(self.token_ids(""), np.shape(prompt_ids))
        return neg_prompt_ids, scales

    def flags(self, params: AllParams, images: np.ndarray) -> list[bool] | None:
        """What the safety checker says of each of `images` ``[B, H, W, 3]`` in 0..1; None without one."""
        return None if self._safety is None else self._safety(params["safety_checker"], images)

    def _judged(self, images: np.ndarray, params: AllParams) -> tuple[np.ndarray, list[bool] | None]:
        """``[D, b, H, W, 3]`` with what the safety checker flags in black."""
        flags = self.flags(params, unshard(images))
        if flags is None:
            return images, None
        keep = ~np.reshape(flags, images.shape[:2])
        return images * keep[:, :, None, None, None].astype(images.dtype), flags


def torch_dtype(dtype: Any) -> torch.dtype:
    """Raises InvalidParameter for a dtype that no checkpoint is run in."""
    name = jnp.dtype(dtype).name
    if name not in _DTYPES:
        raise InvalidParameter("dtype", f"has to be one of {', '.join(_DTYPES)}, not {name}")
    return _DTYPES[name]


def _require_known(host: StableDiffusionInpaintPipeline) -> None:
    """Raise CheckpointInvalid for a model that this back end does not run, FeatureUnavailable for a scheduler."""
    channels, unet = host.vae.config.latent_channels, host.unet.config
    text_config = getattr(host.text_encoder, "config", None)
    refused = {
        f"unet.in_channels is {unet.in_channels}, not {2 * channels + 1}": unet.in_channels != 2 * channels + 1,
        "unet.time_cond_proj_dim is set": unet.time_cond_proj_dim is not None,
        f"vae is {type(host.vae).__name__}, not AutoencoderKL": type(host.vae) is not AutoencoderKL,
        "text_encoder is missing": text_config is None,
        "text_encoder.use_attention_mask is set": getattr(text_config, "use_attention_mask", False),
    }
    for what, wrong in refused.items():
        if wrong:
            raise CheckpointInvalid(f"{what}: the JAX back end does not run this checkpoint; use the torch one")
    require_deterministic(host.scheduler)


def _check_rows(rows: Rows, leading: tuple[int, ...], grid: tuple[int, int, int]) -> None:
    """Raise InvalidParameter unless all have the leading axes of `prompt_ids`, and latents the grid's shape."""
    for name, value in rows._replace(keys=None)._asdict().items():
        if value is not None and np.shape(value)[: len(leading)] != leading:
            raise InvalidParameter(name, f"is of shape {np.shape(value)} and has to begin with {leading}")
    if rows.latents is not None and np.shape(rows.latents) != (*leading, *grid):
        raise InvalidParameter("latents", f"is of shape {np.shape(rows.latents)}, and {(*leading, *grid)} is asked")
