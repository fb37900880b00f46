"""One denoising run, walked twice: by diffusers' scheduler as its inpaint pipeline walks it, and by ours.

The model is a fixed smooth function of the sample and the timestep, so that every difference is the scheduler's.
"""

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import diffusers
import torch

from worker.engine.schedulers import SCHEDULERS

SHAPE = (2, 4, 6, 6)


def model(sample: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """Bounded, different for every position, channel and timestep, and never amplifying a rounding error much."""
    t = timestep.double().item() / 1000
    mixed = 0.6 * torch.tanh(sample) + 0.3 * torch.sin(sample.roll(1, dims=-1) + 2 * t)
    return (mixed + 0.1 * t * sample.roll(1, dims=1)).to(sample.dtype)


@dataclass
class Walk:
    """Everything a run shows on its way."""

    timesteps: torch.Tensor
    samples: list[torch.Tensor]
    inputs: list[torch.Tensor]
    renoised: list[torch.Tensor]
    cleans: list[torch.Tensor | None]
    start_sigma: float


def generators(kind: str, rows: int):
    if kind == "none":
        torch.manual_seed(7)
        return None
    if kind == "one":
        return torch.Generator().manual_seed(7)
    return [torch.Generator().manual_seed(7 + k) for k in range(rows)]


def pictures(shape=SHAPE, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    image, noise = (torch.randn(shape, generator=generator) for _ in range(2))
    return (0.5 * image).to(dtype), noise.to(dtype)


def their_walk(scheduler, steps, strength, *, generator="one", custom=None, shape=SHAPE, dtype=torch.float32, **kwargs):
    """The loop of diffusers' StableDiffusionInpaintPipeline, 4-channel form: it re-noises the image after each step."""
    image, noise = pictures(shape, dtype)
    scheduler.set_timesteps(**(custom or {"num_inference_steps": steps}), device="cpu")
    if custom:
        steps = len(scheduler.timesteps)
    begin = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    timesteps = scheduler.timesteps[begin:]
    source = generators(generator, shape[0])
    accepted = inspect.signature(scheduler.step).parameters
    extra = {key: value for key, value in {"generator": source, **kwargs}.items() if key in accepted}
    walk = Walk(timesteps, [], [], [], [], float(scheduler.init_noise_sigma))
    if strength == 1.0:
        latents = noise * scheduler.init_noise_sigma
    else:
        latents = scheduler.add_noise(image, noise, timesteps[:1].repeat(shape[0]))
    walk.samples.append(latents)
    for i, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(latents, t)
        output = scheduler.step(model(scaled, t), t, latents, **extra)
        latents = output.prev_sample
        walk.inputs.append(scaled)
        walk.samples.append(latents)
        walk.cleans.append(output.get("pred_original_sample", output.get("denoised")))
        if i < len(timesteps) - 1:
            walk.renoised.append(scheduler.add_noise(image, noise, torch.tensor([timesteps[i + 1]])))
    return walk


def our_walk(
    scheduler,
    steps,
    strength,
    *,
    generator="one",
    custom=None,
    shape=SHAPE,
    dtype=torch.float32,
    before_step=lambda state: state,
    seed=None,
    **kwargs,
):
    """The same run; `before_step` may put another state in the place of the one it is given."""
    image, noise = pictures(shape, dtype)
    state = scheduler.start(**(custom or {"num_inference_steps": steps}), strength=strength, seed=seed)
    source = generators(generator, shape[0])
    walk = Walk(state.schedule, [], [], [], [], float(scheduler.init_noise_sigma(state)))
    if strength == 1.0:
        latents = noise * scheduler.init_noise_sigma(state)
    else:
        latents = scheduler.add_noise(state, image, noise, state.schedule[:1].repeat(shape[0]))
    walk.samples.append(latents)
    while not scheduler.done(state):
        state = before_step(state)
        scaled = scheduler.model_input(state, latents)
        output = model(scaled, scheduler.timestep(state))
        state, latents, clean = scheduler.step(state, output, latents, generator=source, **kwargs)
        walk.inputs.append(scaled)
        walk.samples.append(latents)
        walk.cleans.append(clean)
        if not scheduler.done(state):
            walk.renoised.append(scheduler.add_noise(state, image, noise, scheduler.timestep(state)))
    return walk


def pair(name: str, **config):
    """(diffusers' scheduler, ours) of one class and configuration."""
    return their_scheduler(getattr(diffusers, name), **config), SCHEDULERS[name](**config)


def their_scheduler(cls, **config):
    with short_schedules(cls):
        return cls(**config)


@contextmanager
def short_schedules(cls):
    """In here no constructor of diffusers computes the 1,000-step schedule that every run replaces."""
    whole = cls.set_timesteps

    def short(self, num_inference_steps, *args, **kwargs):
        return whole(self, min(num_inference_steps, 2), *args, **kwargs)

    with patch.object(cls, "set_timesteps", short):
        yield


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference over largest value; ∞ for other shapes, other types, and anything that is not finite."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype or not ours.isfinite().all():
        return float("inf")
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-12))


def worst(ours: Walk, theirs: Walk) -> float:
    """The largest relative error of anything along the way; ∞ where the timesteps differ."""
    if not torch.equal(ours.timesteps, theirs.timesteps):
        return float("inf")
    pairs = [
        *zip(ours.samples, theirs.samples, strict=True),
        *zip(ours.inputs, theirs.inputs, strict=True),
        *zip(ours.renoised, theirs.renoised, strict=True),
        *((a, b) for a, b in zip(ours.cleans, theirs.cleans, strict=True) if b is not None),
    ]
    return max([abs(ours.start_sigma - theirs.start_sigma) / theirs.start_sigma, *(error(a, b) for a, b in pairs)])
