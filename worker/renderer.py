"""The warm engine, as the farm's jobs know it: a job in, its pictures out, and every way in which it can end.

    told to give way     → Preemption, with the whole state after the current step
    out of memory        → smaller batches, down to one row; then Resource, and after three in a row WorkerFatal
    a device that failed → WorkerFatal: this process can do nothing more on it
    weights that drifted → WorkerFatal

Many threads may render at once: their jobs share the engine's steps. Fetching, decoding and writing of other jobs go on
beside it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import nn

from farm import metrics
from farm.config import Settings
from farm.errors import FeatureUnavailable, Misconfigured, NsfwContent, Preempted, Resource, WorkerFatal
from farm.schemas import InpaintJob
from farm.weights import read_header
from worker import device
from worker.engine import InpaintEngine, StableDiffusionInpaintPipeline
from worker.engine.faults import DeviceLost, MemoryExhausted
from worker.engine.guidance import is_guided
from worker.engine.ip_adapter import read_ip_adapter
from worker.engine.layers import ResnetBlock2D
from worker.engine.listener import Listener
from worker.engine.lora import Adapter, read_lora
from worker.engine.request import Request
from worker.engine.stopwatch import Work
from worker.engine.submission import GaveWay, ImagePrompt, Painted, Submission, Ticket, Word
from worker.engine.textual_inversion import read_embedding
from worker.pace import Pace
from worker.preemption import Preemption
from worker.runner import Rendered, RenderRequest
from worker.samplers import sampler
from worker.saved_state import Facts, StateRefused, facts_of, pack, unpack
from worker.weight_guard import WeightGuard

__all__ = ["Preemption", "WarmRenderer"]

log = logging.getLogger(__name__)

_SHORTAGES = 3  # jobs in a row that ran out of memory: something holds it that this process cannot free
_LOOK_SECONDS = 0.2  # how often a job that waits its turn asks whether it is to give way
_SLOW_STEP = 1.0  # seconds, of one picture under guidance
# Until it is measured: a CPU is busy with one picture.
_ROWS = {"cpu": 2, "cuda": 16}
# Numbers of rows and of distinct LoRA sets that the warm-up tries.
_TRIALS = {"cpu": ((2, 4), (1, 2)), "cuda": ((2, 4, 8, 16, 32), (1, 2, 4, 8))}
_STARTED_ANEW = "saved state damaged or of another version, started anew"


class WarmRenderer(Listener):
    """One checkpoint on one device. Raises Misconfigured or the engine's CheckpointInvalid when it cannot be had."""

    def __init__(self, settings: Settings):
        if settings.model_path is None:
            raise Misconfigured("FARM_MODEL_PATH is not set; give the folder of a checkpoint in the diffusers layout.")
        self._settings = settings
        self.device = device.choose_device(settings.device)
        self._dtype = device.choose_dtype(settings.dtype, self.device)
        device.limit_memory(self.device, settings.vram_budget)
        self.checkpoint_sha256 = hash_folder(settings.model_path)
        self._pipe = StableDiffusionInpaintPipeline.from_pretrained(settings.model_path, torch_dtype=self._dtype)
        self._pipe.to(self.device)
        self._checkpoint_scheduler = self._pipe.scheduler
        self._pace = Pace()
        self._metered = True
        self._flights: dict[int, Ticket] = {}
        self._shortages, self._shortage_lock = 0, Lock()
        self._progress = 0
        self._count_forwards()
        self.on_broken: Callable[[str], object] = lambda why: None
        """Called with `broken` before the WorkerFatal is raised: the place to say "not ready"."""
        self.engine = InpaintEngine(
            self._pipe, max_rows=settings.max_batch_rows or _ROWS[torch.device(self.device).type], listener=self
        )
        self._guard = WeightGuard(self._pipe, self.engine.merger, every=settings.weight_check_swaps)

    @property
    def broken(self) -> str:
        """Why this process cannot render any more; empty while it can."""
        return self.engine.broken

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close()

    def read_lora(self, data: bytes) -> Any:
        """A LoRA's file matched to this model; LoraInvalid and its kinds. Called beside a render, not within."""
        read_header(data)  # a hostile header is refused before anything is allocated for it
        return read_lora(data, self.engine.merger.table)

    def lora_targets(self) -> dict[str, Any]:
        """What of this model a LoRA can change, for clients that judge a LoRA without the model."""
        return self.engine.merger.table.to_json()

    def read_embedding(self, data: bytes) -> Any:
        """A textual inversion's tensors, with the name that its file gives it."""
        return read_embedding(data)

    def read_ip_adapter(self, data: bytes) -> Any:
        """An IP-Adapter's two groups of tensors."""
        if self._pipe.image_encoder is None:
            raise FeatureUnavailable(
                "This checkpoint has no image encoder, which an IP-Adapter needs; leave ip_adapter out, or serve a "
                "checkpoint with the folders image_encoder and feature_extractor."
            )
        return read_ip_adapter(data)

    def warm_up(self) -> None:
        """Render a grey square at every bucket, so that the first job meets a warm device and its time is known."""
        begin, self._metered = time.monotonic(), False
        sizes = self._settings.buckets()
        self._render_grey(sizes[0])
        self._pace = Pace()  # what the very first forwards took says nothing of the next
        self._render_grey(sizes[0])
        self._measure(*sizes[0])
        for size in sizes[1:]:
            self._render_grey(size)
        self._compile(sizes)
        self._metered = True
        log.info("warm after %.1f s", time.monotonic() - begin)

    def _measure(self, width: int, height: int) -> None:
        """Learn how many rows the device takes gladly, and what LoRAs cost it beside that."""
        step = self._pace.seconds("denoise", Work(width, height, 2))
        slow = step > _SLOW_STEP
        self.engine.quicken(width, height, rows=2, repeats=1 if slow else 3)
        if slow:  # where a step is so long, a merge is nothing and a batch no gain
            return
        rows, sets = _TRIALS[torch.device(self.device).type]
        most = self._settings.max_batch_rows
        costs = self.engine.measure(
            width, height, rows=[n for n in rows if not most or n <= most] or rows[:1], sets=sets
        )
        if most:
            self.engine.max_rows = most
        log.info("measured: %s; up to %d rows a forward", json.dumps(costs.to_json()), self.engine.max_rows)

    def _compile(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Have the steps that a busy worker makes compiled, if that is wanted: of one picture, and of full batches."""
        if self._settings.compile == "off":
            return
        rows = {2, *(n for n in _TRIALS[torch.device(self.device).type][0] if n <= self.engine.max_rows)}
        for width, height in sizes:
            self.engine.compile(self._settings.compile, width, height, rows=sorted(rows))

    def _render_grey(self, size: tuple[int, int]) -> None:
        grey, white = Image.new("RGB", size, (128, 128, 128)), Image.new("L", size, 255)
        job = InpaintJob(image="file:///warm-up", num_inference_steps=1)
        self.render(RenderRequest(job, grey, white, seed=0, on_step=lambda: None))

    @property
    def jobs_at_once(self) -> int:
        """How many jobs of one picture under guidance share a step."""
        return max(1, self.engine.max_rows // 2)

    def progress(self) -> int:
        """Grows with every block of every network, and with every stage: it stands still only if the device does."""
        return self._progress

    @property
    def rendering(self) -> bool:
        """Whether the device has something to do."""
        return self.engine.busy

    def refresh_metrics(self) -> None:
        """Read the device's memory for a scrape."""
        for kind, size in device.memory(self.device, self._settings.vram_budget).items():
            metrics.vram_bytes.labels(self.device, kind).set(size)

    # A job, and how it can end

    def render(self, request: RenderRequest) -> Rendered:
        """The request's pictures. What `on_step` and `preempted` raise ends the render and is raised on.

        `preempted` is asked while the request waits its turn, when that comes, and after every step. Raises Preempted
        (before the first step), Preemption (after one), Resource, NonFiniteOutput, BlackOutput, NsfwContent, the
        engine's other errors, and WorkerFatal, after which `broken` is set.
        """
        if self.broken:
            raise WorkerFatal(self.broken)
        warnings: list[str] = []
        try:
            painted = self._turn(self.engine.submit(self._submission(request, warnings)), request)
        except GaveWay as gave_way:
            raise self._given_way(request, gave_way.request) from None
        except MemoryExhausted as shortage:
            raise self._exhausted(shortage) from None
        except Exception as error:
            if self.broken:
                raise WorkerFatal(self.broken) from error
            raise
        finally:
            self._flights.pop(id(request.job), None)
        self._shortages = 0
        return self._rendered(request, painted, warnings)

    def _turn(self, future: Future[Painted], request: RenderRequest) -> Painted:
        """Wait for it; while it waits its turn in the engine it may still be called back."""
        while True:
            try:
                return future.result(timeout=_LOOK_SECONDS)
            except TimeoutError:
                if future.done():
                    raise
            if not future.running() and request.preempted() and future.cancel():
                raise GaveWay(None)

    def _submission(self, request: RenderRequest, warnings: list[str]) -> Submission:
        job, count = request.job, request.job.num_images_per_prompt
        seeds = tuple(request.seed + index for index in range(count))
        reference = None
        if request.ip_adapter is not None:
            ref, asset, picture = request.ip_adapter
            reference = ImagePrompt(asset.weights, picture, ref.scale, asset.sha256)
        return Submission(
            arguments={
                "prompt": job.prompt,
                "negative_prompt": job.negative_prompt,
                # One copy for each picture: each then draws from its own generator only, and is that seed's picture.
                "image": [request.image] * count,
                "mask_image": [request.mask] * count,
                "width": request.image.width,
                "height": request.image.height,
                "strength": job.strength,
                "num_inference_steps": job.num_inference_steps,
                "guidance_scale": job.guidance_scale,
                "num_images_per_prompt": count,
                "eta": job.eta,
                # On the CPU and one an image, so that the noise is the same on every device and in every batch.
                "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
                "clip_skip": job.clip_skip,
            },
            scheduler=sampler(job.scheduler, self._checkpoint_scheduler),
            loras=tuple(Adapter(asset.weights, ref.scale, ref.scale) for ref, asset in request.loras),
            words=tuple(Word(ref.token, asset.weights, asset.sha256) for ref, asset in request.embeddings),
            image_prompt=reference,
            path_seeds=seeds,
            resume=self._resumed(request, warnings),
            on_step=lambda ticket: self._stepped(request),
            give_way=lambda ticket: self._asked(request, ticket),
        )

    def _asked(self, request: RenderRequest, ticket: Ticket) -> bool:
        self._flights[id(request.job)] = ticket
        return request.preempted()

    def _stepped(self, request: RenderRequest) -> None:
        if self._metered:
            metrics.denoise_steps.inc(request.job.num_images_per_prompt)
        request.on_step()

    def _rendered(self, request: RenderRequest, painted: Painted, warnings: list[str]) -> Rendered:
        if any(painted.flags or ()):
            raise NsfwContent("The checkpoint's safety checker flagged the picture; change the prompt or the seed.")
        pictures = self._pipe.hand_out(painted.request, painted.pictures, painted.flags).images
        if request.loras and self._metered:
            slowest = max((asset.tier for _, asset in request.loras), key=metrics.SWAP_TIERS.index)
            metrics.lora_swaps.labels(slowest if painted.lora_seconds else "resident").inc()
            if painted.lora_seconds:
                metrics.lora_swap_seconds.observe(painted.lora_seconds)
        timings = {"lora": painted.lora_seconds, **painted.seconds}
        return Rendered(pictures, timings, painted.lora_seconds, (*warnings, *painted.notes), painted.lora_mode)

    def _exhausted(self, shortage: MemoryExhausted) -> Exception:
        with self._shortage_lock:
            self._shortages += 1
            if self._shortages >= _SHORTAGES:
                self.engine.give_up(f"{_SHORTAGES} jobs in a row ran out of memory: {shortage}")
                return WorkerFatal(self.broken)
        return Resource(
            f"Out of memory even with one picture at a time ({shortage}); use a smaller size or more memory."
        )

    # Saved states

    def _given_way(self, request: RenderRequest, state: Request | None) -> Preempted:
        if state is None or state.step_index == 0:
            return Preempted("The job was told to give way before its first step.")
        begin = time.monotonic()
        preemption = Preemption(pack(state, self._facts(request)), state.step_index)
        log.info(
            "gave way after step %d of %d: %d bytes of state, saved in %.3f s",
            preemption.step,
            state.num_timesteps,
            len(preemption.state),
            time.monotonic() - begin,
        )
        return preemption

    def _resumed(self, request: RenderRequest, warnings: list[str]) -> Request | None:
        """What an earlier attempt left, if it is whole and of this job, model and version."""
        if request.resume is None:
            return None
        try:
            state = unpack(request.resume, self._facts(request), self.device)
        except StateRefused as refused:
            log.warning("started anew, since a saved state of %d bytes is of no use: %s", len(request.resume), refused)
            warnings.append(_STARTED_ANEW)
            return None
        log.info("goes on after step %d of %d", state.step_index, state.num_timesteps)
        return state

    def _facts(self, request: RenderRequest) -> Facts:
        return facts_of(request, checkpoint_sha256=self.checkpoint_sha256, device=self.device, dtype=self._dtype)

    # What the engine tells

    def worked(self, stage: str, work: Work, seconds: float) -> None:
        self._moved()
        self._pace.observe(stage, work, seconds)
        if self._metered and stage == "denoise":
            metrics.engine_batch_size.observe(work.rows)

    def computed(self, seconds: float) -> None:
        if self._metered:
            metrics.engine_busy_seconds.inc(seconds)

    def swapped(self) -> None:
        self._moved()
        if drifted := self._guard.swapped():
            names = ", ".join(drifted[:3])
            metrics.gpu_faults.labels("drift").inc()
            raise DeviceLost(f"{len(drifted)} base weights are no longer what was loaded ({names}): begin anew.")

    def short_of_memory(self) -> None:
        metrics.gpu_faults.labels("memory").inc()

    def broken_down(self, why: str, error: BaseException | None) -> None:
        if error is not None and not isinstance(error, DeviceLost):
            metrics.gpu_faults.labels("sticky").inc()
        self.on_broken(why)

    # Progress and time

    def estimate_seconds(self, request: RenderRequest) -> float:
        """Seconds that the request's job takes on the device by what others took, or, once it has the device, seconds
        that are left of it. Infinity where nothing was rendered yet. Waiting is not counted. For any thread.
        """
        job, (width, height) = request.job, request.image.size
        pictures = Work(width, height, job.num_images_per_prompt)
        decoding = self._pace.seconds("vae_decode", pictures)
        ticket = self._flights.get(id(job))
        if ticket is not None and ticket.request is not None:
            beside = Work(width, height, max(self.engine.rows, ticket.rows))
            left = ticket.evaluations_left
            return decoding + (left * self._pace.seconds("denoise", beside) if left else 0.0)
        steps = max(1, int(job.num_inference_steps * job.strength))
        evaluations = steps * sampler(job.scheduler, self._checkpoint_scheduler).order
        guided = is_guided(job.guidance_scale, self._pipe.unet.config.time_cond_proj_dim)
        step = self._pace.seconds("denoise", Work(width, height, pictures.rows * (2 if guided else 1)))
        return self._pace.seconds("vae_encode", pictures) + evaluations * step + decoding

    def _count_forwards(self) -> None:
        for model in self._pipe.modules():
            model.register_forward_hook(self._moved)
            for block in model.modules():
                if isinstance(block, ResnetBlock2D):  # some dozens of them in UNet, encoder and decoder, tile by tile
                    block.register_forward_hook(self._moved)

    def _moved(self, *_: nn.Module | torch.Tensor) -> None:
        self._progress += 1


def hash_folder(folder: Path) -> str:
    """One sha256 over names and bytes of a checkpoint's files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt"):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()
