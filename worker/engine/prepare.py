"""From a checked call to a request: everything that happens once, before the first step.

The order below is diffusers' order of random draws: image latents, start noise, masked-image latents.
"""

from dataclasses import dataclass

import torch

from worker.engine.call import Call
from worker.engine.errors import InvalidParameter
from worker.engine.latents import Encode, latents_of, repeat_rows
from worker.engine.masks import Box, to_latent_grid
from worker.engine.noise import randn_tensor, skip_sample
from worker.engine.request import Overlay
from worker.engine.schedulers import Scheduler, SchedulerState


@dataclass(frozen=True, eq=False)
class Canvas:
    """The call's pictures, read: `image` ``[n, 3, H, W]`` in −1..1 or latents ``[n, C, h, w]``, float32; `mask`
    ``[m, 1, H, W]`` of 0 and 1; `box` where both were cropped from."""

    image: torch.Tensor
    mask: torch.Tensor
    box: Box | None

    @property
    def holds_latents(self) -> bool:
        return self.image.shape[-2:] != self.mask.shape[-2:]

    def masked(self) -> torch.Tensor:
        """The picture with the region to repaint set to mid-grey: ``[max(n, m), 3, H, W]``."""
        if self.holds_latents:
            raise InvalidParameter("masked_image_latents", "has to be given when `image` holds latents")
        if len(self.image) != len(self.mask) and 1 not in (len(self.image), len(self.mask)):
            counts = f"holds {len(self.mask)} masks for {len(self.image)} images: give one, or one each"
            raise InvalidParameter("mask_image", counts)
        return self.image * (self.mask < 0.5)


@dataclass(frozen=True, eq=False)
class Reading:
    """A checked call with its pictures read: all that is known of it before a network is asked."""

    call: Call
    canvas: Canvas
    guided: bool

    @property
    def rows(self) -> int:
        """Of a step through the UNet."""
        return self.call.rows * (2 if self.guided else 1)


def read_canvas(call: Call, image_processor, mask_processor, channels: int) -> Canvas:
    """Raises InvalidParameter for pictures that cannot be read, are not RGB, or are latents of another size."""
    box, mode = None, "default"
    if call.padding_mask_crop is not None:
        box = mask_processor.get_crop_region(call.mask_image, call.width, call.height, pad=call.padding_mask_crop)
        mode = "fill"
    where = {"height": call.height, "width": call.width, "resize_mode": mode, "crops_coords": box}
    image = image_processor.preprocess(call.image, **where).to(torch.float32)
    mask = mask_processor.preprocess(call.mask_image, **where).to(image.device)
    if mask.shape[1] != 1:
        raise InvalidParameter("mask_image", f"has to have one channel, not {mask.shape[1]}")
    factor = image_processor.vae_scale_factor
    grid = (call.height // factor, call.width // factor)
    latents = image.shape[1] == image_processor.vae_latent_channels and image.shape[-2:] == grid
    if image.shape[1] != channels and not latents:
        rule = f"has to have {channels} channels, or to be latents of {grid}, not {tuple(image.shape[1:])}"
        raise InvalidParameter("image", rule)
    return Canvas(image, mask, box)


def pictures_of(reading: Reading, *, plain: bool) -> list[torch.Tensor]:
    """What `prepare_grid` will have the VAE encode of the canvas, ``[n, 3, H, W]`` float32 each. `plain`: for a UNet
    of 4 channels. Raises InvalidParameter where it would."""
    call, canvas = reading.call, reading.canvas
    if canvas.holds_latents:
        return []
    masked = [] if plain or call.masked_image_latents is not None else [canvas.masked()]
    return [canvas.image] * _needs_image_latents(call, plain) + masked


def _needs_image_latents(call: Call, plain: bool) -> bool:
    return plain or (call.latents is None and call.strength < 1)


def overlay_of(call: Call, canvas: Canvas) -> Overlay | None:
    if canvas.box is None:
        return None
    return Overlay(canvas.box, call.image.convert("RGBA"), call.mask_image.convert("L"))


@dataclass(frozen=True, eq=False)
class Grid:
    """What lives on the latent grid, N rows each; `image_latents` and `noise` only for a plain (4-channel) UNet."""

    latents: torch.Tensor
    mask: torch.Tensor
    masked_image_latents: torch.Tensor | None
    image_latents: torch.Tensor | None
    noise: torch.Tensor | None


def prepare_grid(
    call: Call,
    canvas: Canvas,
    vae,
    scheduler: Scheduler,
    state: SchedulerState,
    *,
    plain: bool,
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    keep_masked: bool,
    encode: Encode = latents_of,
) -> Grid:
    """`shape` is the latents' ``(N, C, h, w)``. `keep_masked`: masked-image latents are wanted (else only drawn for).

    Strength 1 starts from pure noise, less from the noised picture (SDEdit, Meng et al., arXiv:2108.01073).
    """
    rows, generator, image_latents = shape[0], call.generator, None
    if _needs_image_latents(call, plain):
        image = canvas.image.to(device=device, dtype=dtype)
        image_latents = repeat_rows(encode(vae, image, generator), rows, "image")
    noise = randn_tensor(shape, generator, device, dtype) if call.latents is None else call.latents.to(device)
    if call.latents is None and call.strength < 1:
        latents = scheduler.add_noise(state, image_latents, noise)
    else:
        latents = noise * scheduler.init_noise_sigma(state)
    mask = to_latent_grid(canvas.mask, *shape[2:]).to(device=device, dtype=dtype)
    masked = _masked_image_latents(call, canvas, vae, shape, device, dtype, keep_masked, encode)
    return Grid(
        latents=latents,
        mask=repeat_rows(mask, rows, "mask_image"),
        masked_image_latents=None if masked is None else repeat_rows(masked, rows, "image"),
        image_latents=image_latents if plain else None,
        noise=noise if plain else None,
    )


def _masked_image_latents(
    call: Call,
    canvas: Canvas,
    vae,
    shape: tuple[int, int, int, int],
    device: torch.device,
    dtype: torch.dtype,
    keep: bool,
    encode: Encode,
) -> torch.Tensor | None:
    if call.masked_image_latents is None and canvas.holds_latents and not keep:
        return None
    masked = canvas.masked() if call.masked_image_latents is None else call.masked_image_latents
    if masked.shape[1] != shape[1] and not keep:
        skip_sample(len(masked), shape[1:], call.generator, device, dtype)
        return None
    latents = encode(vae, masked.to(device=device, dtype=dtype), call.generator)
    if latents.shape[1:] != shape[1:]:
        raise InvalidParameter("masked_image_latents", f"has to be of shape {shape}, not {tuple(latents.shape)}")
    return latents
