"""What is compiled: texts, pictures to latents, the denoising loop, latents to pictures; and all of it as one.

Every function is pure: parameters, step table, guidance and LoRAs are arguments, so that none of them compiles anything
anew. What does is a new shape, and guidance going on or off, since that is twice the rows or once.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import torch
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from worker.engine.guidance import classifier_free_guidance
from worker.engine.pipeline import StableDiffusionInpaintPipeline
from worker.engine.vae import AutoencoderKL
from worker.engine_jax.bridge import Params, function
from worker.engine_jax.devices import AXIS, mesh
from worker.engine_jax.step_table import History, StepTable, advance


class Rows(NamedTuple):
    """A call's own part of what it takes: everything [D, b, …], D devices with b rows each."""

    ids: Array
    """Tokens [D, b, L]."""
    negative_ids: Array | None
    """None without guidance."""
    mask: Array
    """[D, b, 1, H, W] of 0 and 1."""
    masked_image: Array
    """[D, b, 3, H, W] in −1..1."""
    guidance: Array
    """[D, b] scales."""
    latents: Array | None
    """[D, b, C, h, w] start noise; None: it is drawn."""
    keys: Array
    """[D]: each draws, for its device's rows, the start noise and the sample of the masked picture's posterior."""


class Conditions(NamedTuple):
    """What each step looks at beside the sample; B rows each."""

    positive: Array
    """[B, L, D] text."""
    negative: Array | None
    """[B, L, D]; None without guidance."""
    mask: Array
    """[B, 1, h, w], 1 where the picture changes."""
    masked_image_latents: Array
    """[B, C, h, w]."""
    guidance: Array
    """[B] scales."""


class Programs:
    """Of one pipeline's networks; `params` are theirs by component: unet, vae, text_encoder."""

    def __init__(self, host: StableDiffusionInpaintPipeline):
        self._scaling_factor, self._factor = host.vae.config.scaling_factor, host.vae_scale_factor
        self._channels = host.vae.config.latent_channels
        self._text_encoder = function(host.text_encoder, lambda model, ids: model(ids).last_hidden_state)
        self._unet = function(host.unet, lambda model, *inputs: model(*inputs))
        self._posterior = function(host.vae, _mean_and_std)
        self._decoder = function(host.vae, lambda vae, z: vae.decode(z))
        everywhere, rows, history = P(), P(AXIS), P(None, AXIS)
        once = {"devices": mesh()}
        self.texts = _over(self._texts, (everywhere, rows), rows, **once)
        self.latents = _over(self._latents, (everywhere, rows, rows), rows, **once)
        takes = (everywhere, history, everywhere, rows, everywhere, everywhere)
        self.denoise = _over(self._denoise, takes, history, **once)
        self.pictures = _over(self._pictures, (everywhere, history), rows, **once)
        self._whole_calls: dict[Any, Any] = {}

    def generate(
        self, devices: Mesh, params: dict[str, Params], rows: Rows, table: StepTable, *, height: int, width: int
    ) -> Array:
        """The whole call as one program, each device with its own rows → pictures [D, b, H, W, 3] in 0..1."""
        kind = (devices, height, width)
        if kind not in self._whole_calls:
            whole_call = partial(self._generate, height=height, width=width)
            self._whole_calls[kind] = _over(whole_call, (P(), P(AXIS), P()), P(AXIS), devices=devices)
        return self._whole_calls[kind](params, rows, table)

    def _texts(self, params: dict[str, Params], ids: Array) -> Array:
        """Tokens [B, L] → [B, L, D]."""
        return self._text_encoder(params["text_encoder"], ids)

    def _latents(self, params: dict[str, Params], pictures: Array, noise: Array) -> Array:
        """Pictures [B, 3, H, W] in −1..1 → a sample of their posterior, scaled: [B, C, h, w] float32."""
        mean, std = self._posterior(params["vae"], pictures.astype(_dtype(params["vae"])))
        return self._scaling_factor * (mean + std * noise).astype(jnp.float32)

    def _denoise(
        self,
        params: dict[str, Params],
        history: History,
        table: StepTable,
        conditions: Conditions,
        first: Array | int,
        last: Array | int,
    ) -> History:
        """Steps first … last − 1 of the table."""
        dtype = _dtype(params["unet"])
        guided = conditions.negative is not None
        text = jnp.concatenate([conditions.negative, conditions.positive]) if guided else conditions.positive
        beside = jnp.concatenate([conditions.mask, conditions.masked_image_latents], axis=1)
        scale = conditions.guidance[:, None, None, None]

        def step(index: Array, history: History) -> History:
            x = jnp.concatenate([table.scales[index] * history.samples[0], beside], axis=1)
            x = jnp.concatenate([x, x]) if guided else x
            times = jnp.broadcast_to(table.timesteps[index], x.shape[:1])
            output = self._unet(params["unet"], x.astype(dtype), times, text.astype(dtype)).astype(jnp.float32)
            if guided:
                output = classifier_free_guidance(*jnp.split(output, 2), scale)
            return advance(table, index, history, output)

        return jax.lax.fori_loop(first, last, step, history)

    def _pictures(self, params: dict[str, Params], history: History) -> Array:
        """The sample as it stands → [B, 3, H, W] float32, nominally in −1..1."""
        scaled = (history.samples[0] / self._scaling_factor).astype(_dtype(params["vae"]))
        return self._decoder(params["vae"], scaled).astype(jnp.float32)

    def to_latent_grid(self, mask: Array) -> Array:
        """[B, 1, H, W] → [B, 1, h, w]: the cell's first pixel, as the engine's nearest neighbour has it."""
        return mask[:, :, :: self._factor, :: self._factor]

    def _generate(self, params: dict[str, Params], rows: Rows, table: StepTable, *, height: int, width: int) -> Array:
        """On one device: D is 1."""
        ids, negative_ids, mask, masked_image, guidance, latents, key = jax.tree.map(lambda x: x[0], rows)
        if masked_image.shape[2:] != (height, width):
            masked_image = jax.image.resize(masked_image, (*masked_image.shape[:2], height, width), "bicubic")
            mask = jax.image.resize(mask, (*mask.shape[:2], height, width), "nearest")
        grid = (height // self._factor, width // self._factor)
        if latents is None:
            latents = jax.random.normal(key, (len(ids), self._channels, *grid))
        # Channels last is how flax drew it, and a key is to give the picture that it gave there.
        noise = jax.random.normal(jax.random.split(key)[1], (len(ids), *grid, self._channels)).transpose(0, 3, 1, 2)
        conditions = Conditions(
            positive=self._texts(params, ids),
            negative=None if negative_ids is None else self._texts(params, negative_ids),
            mask=self.to_latent_grid(mask),
            masked_image_latents=self._latents(params, masked_image, noise),
            guidance=guidance,
        )
        history = self._denoise(params, History.begin(latents * table.start), table, conditions, 0, table.steps)
        pictures = self._pictures(params, history)
        return jnp.clip(pictures / 2 + 0.5, 0, 1).transpose(0, 2, 3, 1)[None]


def _mean_and_std(vae: AutoencoderKL, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    posterior = vae.encode(pictures)
    return posterior.mean, posterior.std


def _over(function: Any, takes: Any, gives: Any, *, devices: Mesh) -> Any:
    """`function` compiled, run by each device on its part, with nothing exchanged between them."""
    inside = jax.shard_map(function, mesh=devices, in_specs=takes, out_specs=gives, check_vma=False)
    placed = [NamedSharding(devices, spec) for spec in takes]
    return jax.jit(inside, in_shardings=placed, out_shardings=NamedSharding(devices, gives))


def _dtype(params: dict[str, Any]) -> jnp.dtype:
    """Of a component's arithmetic."""
    return next(x.dtype for x in params.values() if jnp.issubdtype(x.dtype, jnp.floating))
