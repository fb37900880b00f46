"""The Flax twin, as the farm's jobs know it: `WarmRenderer`'s interface over `worker.engine_jax`.

A job's pictures go over JAX's devices, one a device, through programs that the warm-up compiled for each size bucket.
What the twin does not do is refused with the option's name. Jobs render one after the other; one that has to give way
begins anew elsewhere, since nothing of it is saved.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from PIL import Image

from farm import metrics
from farm.config import Settings
from farm.errors import FeatureUnavailable, Misconfigured, NsfwContent, Preempted, Resource, WorkerFatal
from farm.schemas import InpaintJob
from farm.weights import read_header
from worker import device
from worker.engine.faults import first_line
from worker.engine.guidance import is_guided
from worker.engine.image_processor import pt_to_numpy
from worker.engine.lora import Adapter, read_lora
from worker.engine.lora.sets import fingerprint
from worker.engine.output import require_painted
from worker.engine.prepare import Reading
from worker.engine.schedulers import Scheduler
from worker.engine.stopwatch import Work
from worker.engine_jax.devices import by_rows, replicate
from worker.engine_jax.pipeline import FlaxStableDiffusionInpaintPipeline
from worker.engine_jax.programs import Conditions
from worker.engine_jax.step_table import History, StepTable, step_table
from worker.pace import Pace
from worker.renderer import hash_folder
from worker.runner import Rendered, RenderRequest
from worker.samplers import sampler

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2  # how often a job that waits its turn asks whether it is to give way
_STARTED_ANEW = "saved state is another back end's, started anew"


class _Noise(NamedTuple):
    """[n, C, h, w] float32 each, drawn in the engine's order, so that a seed is the same picture on both back ends."""

    image: np.ndarray | None
    start: np.ndarray
    masked: np.ndarray


class JaxRenderer:
    """One checkpoint on all of JAX's devices. Raises Misconfigured or CheckpointInvalid when it cannot be had."""

    jobs_at_once = 1

    def __init__(self, settings: Settings):
        self._settings = settings
        self._devices = jax.device_count()
        self.device = f"jax-{jax.default_backend()}"
        if settings.model_path is None:
            raise Misconfigured("FARM_MODEL_PATH is not set; give the folder of a checkpoint in the diffusers layout.")
        _require_meant(settings)
        self.checkpoint_sha256 = hash_folder(settings.model_path)
        self.pipeline, params = FlaxStableDiffusionInpaintPipeline.from_pretrained(
            settings.model_path, dtype=_dtype(settings.dtype)
        )
        self._host, self._programs = self.pipeline.host, self.pipeline.programs
        self._base = self._params = replicate(params)
        self._merged = ""  # the fingerprint of the LoRAs in `_params`
        self._checkpoint_scheduler = self._host.scheduler
        self._pace, self._turn, self._metered = Pace(), Lock(), True
        self._moves = 0
        self._left: dict[int, int] = {}  # of jobs that have the device, evaluations
        self.broken = ""
        """Why this process cannot render any more; empty while it can."""
        self.on_broken: Callable[[str], object] = lambda why: None

    def read_lora(self, data: bytes) -> Any:
        """A LoRA's file matched to this model; LoraInvalid and its kinds."""
        read_header(data)
        return read_lora(data, self._host.lora.merger.table)

    def lora_targets(self) -> dict[str, Any]:
        return self._host.lora.merger.table.to_json()

    def read_embedding(self, data: bytes) -> Any:
        raise _unavailable("embeddings")

    def read_ip_adapter(self, data: bytes) -> Any:
        raise _unavailable("ip_adapter")

    def warm_up(self) -> None:
        """Compile what every bucket needs, with guidance and without, and learn how long it takes."""
        begin, self._metered, kept = time.monotonic(), False, Pace()
        for size in self._settings.buckets():
            for guidance in (7.5, 1.0):
                grey, white = Image.new("RGB", size, (128, 128, 128)), Image.new("L", size, 255)
                job = InpaintJob(image="file:///warm-up", num_inference_steps=2, guidance_scale=guidance)
                request = RenderRequest(job, grey, white, seed=0, on_step=lambda: None)
                self._pace = Pace()  # what compiling takes says nothing of the next
                self.render(request)
                self._pace = kept
                self.render(request)
        self._metered = True
        log.info("compiled for %d devices after %.1f s", self._devices, time.monotonic() - begin)

    def progress(self) -> int:
        """Grows with every step and stage."""
        return self._moves

    @property
    def rendering(self) -> bool:
        """Whether a job has the devices. Nothing moves while the warm-up compiles, for minutes where models are large,
        so that is not counted."""
        return self._metered and self._turn.locked()

    def refresh_metrics(self) -> None:
        for kind, size in _memory().items():
            metrics.vram_bytes.labels(self.device, kind).set(size)

    def estimate_seconds(self, request: RenderRequest) -> float:
        """Seconds that the request's job takes on the devices, or that are left of it; infinity if not known."""
        job, (width, height) = request.job, request.image.size
        rounds = -(-job.num_images_per_prompt // self._devices)
        per_picture = Work(width, height, 1)
        beside = sum(self._pace.seconds(stage, per_picture) for stage in ("vae_encode", "vae_decode"))
        evaluations = self._left.get(id(job))
        if evaluations is None:
            steps = max(1, int(job.num_inference_steps * job.strength))
            evaluations = rounds * steps * sampler(job.scheduler, self._checkpoint_scheduler).order
        step = self._pace.seconds("denoise", Work(width, height, 2 if is_guided(job.guidance_scale, None) else 1))
        return rounds * beside + evaluations * step

    # A job, and how it can end

    def render(self, request: RenderRequest) -> Rendered:
        """The request's pictures. What `on_step` and `preempted` raise ends the render and is raised on.

        `preempted` is asked while the request waits its turn, when that comes, and after every step. Raises Preempted,
        FeatureUnavailable for what this back end does not do, Resource, NonFiniteOutput, BlackOutput, NsfwContent, the
        engine's other errors, and WorkerFatal, after which `broken` is set.
        """
        scheduler = sampler(request.job.scheduler, self._checkpoint_scheduler)
        _require_known(request, scheduler, self._settings.buckets())
        while not self._turn.acquire(timeout=_LOOK_SECONDS):
            _ask(request)
        try:
            if self.broken:
                raise WorkerFatal(self.broken)
            _ask(request)
            return self._painted(request, scheduler)
        except jax.errors.JaxRuntimeError as error:
            raise self._failed(error) from error
        finally:
            self._left.pop(id(request.job), None)
            self._turn.release()

    def _failed(self, error: Exception) -> Exception:
        if "RESOURCE_EXHAUSTED" in str(error):
            metrics.gpu_faults.labels("memory").inc()
            return Resource(f"Out of memory ({first_line(error)}); use a smaller size or more memory.")
        self.broken = f"The device failed: {first_line(error)}"
        metrics.gpu_faults.labels("sticky").inc()
        self.on_broken(self.broken)
        return WorkerFatal(self.broken)

    def _painted(self, request: RenderRequest, scheduler: Scheduler) -> Rendered:
        job, count = request.job, request.job.num_images_per_prompt
        timings = {"lora": self._swap(request)}
        reading = self._host.read_call(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            image=request.image,
            mask_image=request.mask,
            width=request.image.width,
            height=request.image.height,
            strength=job.strength,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
        )
        table = step_table(scheduler, job.num_inference_steps, job.strength)
        seeds = [request.seed + index for index in range(count)]
        rounds = [seeds[begin : begin + self._devices] for begin in range(0, count, self._devices)]
        self._left[id(job)] = len(rounds) * int(table.steps)
        pictures = []
        for part in rounds:
            pictures += self._round(request, reading, scheduler, table, part, timings)
        warnings = (_STARTED_ANEW,) if request.resume is not None else ()
        return Rendered(pictures, timings, timings["lora"], warnings, "merged" if request.loras else "")

    def _swap(self, request: RenderRequest) -> float:
        """Have the job's LoRAs in the parameters; seconds it took, 0 where they were."""
        wanted = tuple(Adapter(asset.weights, ref.scale, ref.scale) for ref, asset in request.loras)
        begin, seconds = time.monotonic(), 0.0
        if fingerprint(wanted) != self._merged:
            self._params = jax.block_until_ready(self.pipeline.with_loras(self._base, wanted))
            self._merged, seconds = fingerprint(wanted), time.monotonic() - begin
            self._moves += 1
        if wanted and self._metered:
            slowest = max((asset.tier for _, asset in request.loras), key=metrics.SWAP_TIERS.index)
            metrics.lora_swaps.labels(slowest if seconds else "resident").inc()
            if seconds:
                metrics.lora_swap_seconds.observe(seconds)
        return seconds

    def _round(
        self,
        request: RenderRequest,
        reading: Reading,
        scheduler: Scheduler,
        table: StepTable,
        seeds: list[int],
        timings: dict[str, float],
    ) -> list[Image.Image]:
        """One picture a device; devices beyond the seeds paint the last one once more, since shapes are fixed."""
        call, programs = reading.call, self._programs
        picture = Work(call.width, call.height, 1)
        evaluation = Work(call.width, call.height, 2 if reading.guided else 1)
        with self._stage("vae_encode", picture, timings):
            everywhere = [*seeds, *seeds[-1:] * self._devices][: self._devices]
            history, conditions = self._begin(reading, scheduler, table, everywhere)
        for index in range(int(table.steps)):
            with self._stage("denoise", evaluation, timings):
                history = programs.denoise(self._params, history, table, conditions, index, index + 1)
                jax.block_until_ready(history)
            self._left[id(request.job)] -= 1
            if self._metered:
                metrics.denoise_steps.inc(len(seeds))
                metrics.engine_batch_size.observe(self._devices * evaluation.rows)
            request.on_step()
            if index + 1 < table.steps:
                _ask(request)
        with self._stage("vae_decode", picture, timings):
            made = torch.from_numpy(np.array(programs.pictures(self._params, history)))
        processor = self._host.image_processor
        flags = self.pipeline.flags(self._params, pt_to_numpy(processor.postprocess(require_painted(made), "pt")))
        if any((flags or ())[: len(seeds)]):
            raise NsfwContent("The checkpoint's safety checker flagged the picture; change the prompt or the seed.")
        return processor.postprocess(made[: len(seeds)], "pil")

    def _begin(
        self, reading: Reading, scheduler: Scheduler, table: StepTable, seeds: list[int]
    ) -> tuple[History, Conditions]:
        """Texts and pictures encoded, noise drawn: a row for each seed."""
        call, canvas, programs, params = reading.call, reading.canvas, self._programs, self._params
        factor = self._host.vae_scale_factor
        shape = (self._host.vae.config.latent_channels, call.height // factor, call.width // factor)
        noise = _drawn(seeds, shape, with_image=call.strength < 1)
        masked, image, mask = (rows(x.numpy(), len(seeds)) for x in (canvas.masked(), canvas.image, canvas.mask))
        latents = noise.start * table.start
        if noise.image is not None:
            clean = torch.from_numpy(np.array(programs.latents(params, image, noise.image)))
            state = scheduler.start(call.num_inference_steps, strength=call.strength)
            latents = scheduler.add_noise(state, clean, torch.from_numpy(noise.start)).numpy()
        texts = (call.prompt, *([call.negative_prompt] if reading.guided else []))
        ids = (rows(self.pipeline.token_ids(text or ""), len(seeds)) for text in texts)
        positive, *negative = (programs.texts(params, one) for one in ids)
        conditions = Conditions(
            positive=positive,
            negative=negative[0] if negative else None,
            mask=programs.to_latent_grid(mask),
            masked_image_latents=programs.latents(params, masked, noise.masked),
            guidance=np.full(len(seeds), call.guidance_scale, np.float32),
        )
        return History.begin(latents), jax.block_until_ready(jax.device_put(conditions, by_rows()))

    @contextmanager
    def _stage(self, stage: str, work: Work, timings: dict[str, float]) -> Iterator[None]:
        """Within, the devices work: timed, and counted as progress once done."""
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        timings[stage] = timings.get(stage, 0.0) + seconds
        self._moves += 1
        self._pace.observe(stage, work, seconds)
        if self._metered:
            metrics.engine_busy_seconds.inc(seconds)


def rows(one: np.ndarray, count: int) -> np.ndarray:
    """``[1, …]`` as ``[count, …]``."""
    return np.broadcast_to(one, (count, *one.shape[1:]))


def _drawn(seeds: list[int], shape: tuple[int, ...], *, with_image: bool) -> _Noise:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    draws = [
        np.stack([torch.randn(shape, generator=generator).numpy() for generator in generators])
        for _ in range(3 if with_image else 2)
    ]
    return _Noise(*draws) if with_image else _Noise(None, *draws)


def _ask(request: RenderRequest) -> None:
    if request.preempted():
        raise Preempted("The job was told to give way; it begins anew.")


def _require_meant(settings: Settings) -> None:
    """Raise Misconfigured for a setting that is set and means nothing here."""
    unset = {"device": "auto", "max_batch_rows": 0, "compile": "off", "vram_budget": 0}
    instead = {"device": "set JAX_PLATFORMS instead", "vram_budget": "set XLA_PYTHON_CLIENT_MEM_FRACTION instead"}
    for name, default in unset.items():
        if getattr(settings, name) != default:
            raise Misconfigured(
                f"FARM_{name.upper()} means nothing with FARM_BACKEND=jax: {instead.get(name, 'leave it out')}."
            )


def _require_known(request: RenderRequest, scheduler: Scheduler, buckets: tuple[tuple[int, int], ...]) -> None:
    """Raise FeatureUnavailable for what this back end does not do; schedulers are `step_table`'s to refuse."""
    job = request.job
    if request.image.size not in buckets:  # to compile for it takes longer than a lease
        sizes = ", ".join(f"{width}x{height}" for width, height in buckets)
        raise FeatureUnavailable(f"width: and height: the JAX back end was compiled for {sizes}; choose one, or none.")
    asked = {
        "embeddings": bool(request.embeddings),
        "ip_adapter": request.ip_adapter is not None,
        "clip_skip": bool(job.clip_skip),
        "eta": job.eta > 0 and "eta" in scheduler.TAKES,
    }
    for option, wanted in asked.items():
        if wanted:
            raise _unavailable(option)


def _unavailable(option: str) -> FeatureUnavailable:
    return FeatureUnavailable(f"{option}: the JAX back end does not do it; leave it out, or use a torch worker.")


def _dtype(wanted: str) -> str:
    if wanted == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if wanted not in device.DTYPES:
        raise Misconfigured(f"FARM_DTYPE is {wanted!r}; choose one of {', '.join(device.DTYPES)} or auto.")
    return wanted


def _memory() -> dict[str, int]:
    """Bytes by kind, over all devices; of the process where the devices are CPUs."""
    if jax.default_backend() == "cpu":
        return device.memory("cpu")
    found = [one.memory_stats() or {} for one in jax.local_devices()]
    kinds = {
        "allocated": "bytes_in_use", "reserved": "bytes_reserved", "peak": "peak_bytes_in_use", "total": "bytes_limit"
    }  # fmt: skip
    return {kind: sum(stats.get(name, 0) for stats in found) for kind, name in kinds.items()}
