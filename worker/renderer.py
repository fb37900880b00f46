"""The warm pipeline: loaded once, one job at a time, each job's LoRAs put on before it and taken off by the next.

The lock around a render is what "one thread owns the device" means here; fetching, decoding and writing of other jobs
go on beside it. What a render may meet on its way:

    told to give way     → Preemption, with the whole state after the current step
    out of memory        → once more, one picture at a time; then Resource, and after three in a row WorkerFatal
    a device that failed → WorkerFatal: this process can do nothing more on it
    weights that drifted → WorkerFatal
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from PIL import Image
from torch import nn

from farm import metrics
from farm.config import Settings
from farm.errors import FeatureUnavailable, Misconfigured, Preempted, Resource, WorkerFatal
from farm.schemas import InpaintJob
from farm.weights import read_header
from worker import device
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.faults import Fault, fault_of, first_line, release_memory, synchronize
from worker.engine.ip_adapter import read_ip_adapter
from worker.engine.layers import ResnetBlock2D
from worker.engine.lora import LoraMerger, read_lora
from worker.engine.textual_inversion import read_embedding
from worker.painting import Painting, economical
from worker.preemption import Preemption
from worker.rendering import Forecast, Rendering
from worker.runner import Rendered, RenderRequest
from worker.samplers import sampler
from worker.saved_state import Facts, StateRefused, facts_of, pack, unpack
from worker.weight_guard import WeightGuard

__all__ = ["Preemption", "WarmRenderer"]

log = logging.getLogger(__name__)

_SHORTAGES = 3  # jobs in a row that ran out of memory twice each: something holds it that this process cannot free
_LOOK_SECONDS = 0.2  # how often a job that waits its turn asks whether it is to give way
_STARTED_ANEW = "saved state damaged or of another version, started anew"
_ONE_AT_A_TIME = "out of memory: rendered one picture at a time"


class WarmRenderer:
    """One checkpoint on one device. Raises Misconfigured or the engine's CheckpointInvalid when it cannot be had."""

    def __init__(self, settings: Settings):
        if settings.model_path is None:
            raise Misconfigured("FARM_MODEL_PATH is not set; give the folder of a checkpoint in the diffusers layout.")
        self._settings = settings
        self.device = device.choose_device(settings.device)
        self._dtype = device.choose_dtype(settings.dtype, self.device)
        self.checkpoint_sha256 = _hash_folder(settings.model_path)
        self._pipe = StableDiffusionInpaintPipeline.from_pretrained(settings.model_path, torch_dtype=self._dtype)
        self._pipe.to(self.device)
        self._pipe.set_progress_bar_config(disable=True)
        self._checkpoint_scheduler = self._pipe.scheduler
        self._merger = LoraMerger(self._pipe.unet, self._pipe.text_encoder)
        self._guard = WeightGuard(self._pipe, self._merger, every=settings.weight_check_swaps)
        self._lock = Lock()
        self._run: Rendering | None = None
        self._forecast = Forecast(self._pipe)
        self._shortages = 0
        self._progress = 0
        self._count_forwards()
        self.broken = ""
        """Why this process cannot render any more; empty while it can."""
        self.on_broken: Callable[[str], object] = lambda why: None
        """Called with `broken` before the WorkerFatal is raised: the place to say "not ready"."""

    def read_lora(self, data: bytes) -> Any:
        """A LoRA's file matched to this model; LoraInvalid and its kinds. Called beside a render, not within."""
        read_header(data)  # a hostile header is refused before anything is allocated for it
        return read_lora(data, self._merger.table)

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
        begin = time.monotonic()
        sizes = self._settings.buckets()
        self._render_grey(sizes[0])
        self._forecast = Forecast(self._pipe)  # what the very first forwards took says nothing of the next
        for size in sizes:
            self._render_grey(size)
        log.info("warm after %.1f s", time.monotonic() - begin)

    def _render_grey(self, size: tuple[int, int]) -> None:
        grey, white = Image.new("RGB", size, (128, 128, 128)), Image.new("L", size, 255)
        job = InpaintJob(image="file:///warm-up", num_inference_steps=1)
        self._render(Rendering(RenderRequest(job, grey, white, seed=0, on_step=lambda: None), metered=False))

    def progress(self) -> int:
        """Grows with every block of every network, and with every stage: it stands still only if the device does."""
        return self._progress

    @property
    def rendering(self) -> bool:
        """Whether a render has the device."""
        return self._run is not None

    def render(self, request: RenderRequest) -> Rendered:
        """The request's pictures. What `on_step` and `preempted` raise ends the render and is raised on.

        `preempted` is asked while the request waits its turn, when that comes, and after every step. Raises Preempted
        (before the first step), Preemption (after one), Resource, NonFiniteOutput, BlackOutput, NsfwContent, the
        engine's other errors, and WorkerFatal, after which `broken` is set.
        """
        return self._render(Rendering(request, metered=True))

    def estimate_seconds(self, request: RenderRequest) -> float:
        """Seconds that the request's job takes on the device by what others took, or, once it has the device, seconds
        that are left of it. Infinity where nothing was rendered yet. Waiting is not counted. For any thread.
        """
        run = self._run
        if run is not None and run.painting is not None and run.request.job is request.job:
            return self._forecast.left(run, run.painting)
        steps = max(1, int(request.job.num_inference_steps * request.job.strength))
        order = sampler(request.job.scheduler, self._checkpoint_scheduler).order
        return self._forecast.whole(request, steps * order)

    def refresh_metrics(self) -> None:
        """Read the device's memory for a scrape."""
        for kind, size in device.memory(self.device).items():
            metrics.vram_bytes.labels(self.device, kind).set(size)

    # The turn on the device, and how it can end

    def _render(self, run: Rendering) -> Rendered:
        with self._turn(run), torch.inference_mode():
            try:
                rendered = self._within_memory(run)
            except Resource as shortage:
                self._shortages += 1
                if self._shortages < _SHORTAGES:
                    raise
                raise self._break(f"{_SHORTAGES} jobs in a row ran out of memory: {shortage}") from None
            except Exception as error:
                if fault_of(error) is Fault.STICKY:
                    metrics.gpu_faults.labels("sticky").inc()
                    raise self._break(f"The device failed: {first_line(error)}") from error
                raise
            self._shortages = 0
            return rendered

    @contextmanager
    def _turn(self, run: Rendering) -> Iterator[None]:
        while not self._lock.acquire(timeout=_LOOK_SECONDS):
            _give_way_unbegun(run.request)
        try:
            if self.broken:
                raise WorkerFatal(self.broken)
            _give_way_unbegun(run.request)
            self._run = run
            yield
        finally:
            self._run = None
            self._lock.release()

    def _break(self, why: str) -> WorkerFatal:
        self.broken = why
        self.on_broken(why)
        return WorkerFatal(why)

    def _within_memory(self, run: Rendering) -> Rendered:
        """The render, and if memory runs out once more with one picture at a time, from the start."""
        shortage = ""
        for singly in (False, True):
            try:
                return self._attempt(run, singly=singly)
            except Exception as error:
                if fault_of(error) is not Fault.MEMORY:
                    raise
                shortage = first_line(error)
            # Here and not in the handler: the tensors of an attempt live as long as its exception does.
            log.warning("out of memory: %s", shortage)
            metrics.gpu_faults.labels("memory").inc()
            run.painting, run.warnings = None, (*run.warnings, _ONE_AT_A_TIME)
            release_memory(self.device)
        raise Resource(
            f"Out of memory even with one picture at a time ({shortage}); use a smaller size or more memory."
        )

    def _attempt(self, run: Rendering, *, singly: bool) -> Rendered:
        swap_seconds = self._put_on(run.request)
        resumed = None if singly else self._resumed(run)
        singly = singly or (resumed is not None and resumed.state.singly)
        with self._extras(run.request) as extras, economical(self._pipe) if singly else nullcontext():
            with self._stage(run, "vae_encode"):
                self._pipe.scheduler = sampler(run.request.job.scheduler, self._checkpoint_scheduler)
                run.painting = resumed or Painting.begin(self._pipe, run.request, extras, singly=singly)
            if resumed is None:
                self._forecast.observe(run, "vae_encode", run.timings["vae_encode"])
            with self._stage(run, "denoise"):
                self._denoise(run, run.painting)
            with self._stage(run, "vae_decode"):
                pictures = run.painting.pictures()
            self._forecast.observe(run, "vae_decode", run.timings["vae_decode"])
        return Rendered(pictures, {"lora": swap_seconds, **run.timings}, swap_seconds, run.warnings)

    def _denoise(self, run: Rendering, painting: Painting) -> None:
        request, begin, before, give_way = run.request, time.monotonic(), painting.evaluations_left, False
        try:
            while not painting.done and not give_way:
                painting.step()
                self._moved()
                if run.metered:
                    metrics.denoise_steps.inc(request.job.num_images_per_prompt)
                request.on_step()
                give_way = request.preempted()
            synchronize(self.device)
        finally:
            if made := before - painting.evaluations_left:
                self._forecast.observe(run, "denoise", time.monotonic() - begin, evaluations=made)
        if give_way:
            raise self._saved(request, painting)

    # Saved states

    def _saved(self, request: RenderRequest, painting: Painting) -> Preemption:
        begin = time.monotonic()
        preemption = Preemption(pack(painting.state, self._facts(request)), painting.step_index)
        log.info(
            "gave way after step %d with %d to go: %d bytes of state, saved in %.3f s",
            preemption.step,
            painting.evaluations_left,
            len(preemption.state),
            time.monotonic() - begin,
        )
        return preemption

    def _resumed(self, run: Rendering) -> Painting | None:
        """The painting that an earlier attempt left, if it is whole and of this job, model and version."""
        blob = run.request.resume
        if blob is None:
            return None
        try:
            painting = Painting(self._pipe, unpack(blob, self._facts(run.request), self.device))
        except StateRefused as refused:
            log.warning("started anew, since a saved state of %d bytes is of no use: %s", len(blob), refused)
            run.warnings += (_STARTED_ANEW,)
            return None
        if painting.state.singly:
            run.warnings += (_ONE_AT_A_TIME,)
        log.info("goes on after step %d with %d to go", painting.step_index, painting.evaluations_left)
        return painting

    def _facts(self, request: RenderRequest) -> Facts:
        return facts_of(request, checkpoint_sha256=self.checkpoint_sha256, device=self.device, dtype=self._dtype)

    # What a job brings

    def _put_on(self, request: RenderRequest) -> float:
        """The job's LoRAs on the model, and only those; seconds it took, 0 if they were there already."""
        begin = time.monotonic()
        wanted = [(lora.weights, ref.scale, ref.scale) for ref, lora in request.loras]
        if not self._merger.set_adapters(wanted, check_finite=True):
            if wanted:
                metrics.lora_swaps.labels("resident").inc()
            return 0.0
        synchronize(self.device)
        self._moved()
        seconds = time.monotonic() - begin
        if wanted:
            slowest = "remote" if any(lora.tier == "remote" for _, lora in request.loras) else "ram"
            metrics.lora_swaps.labels(slowest).inc()
            metrics.lora_swap_seconds.observe(seconds)
        if drifted := self._guard.swapped():
            names = ", ".join(drifted[:3])
            metrics.gpu_faults.labels("drift").inc()
            raise self._break(f"{len(drifted)} base weights are no longer what was loaded ({names}): begin anew.")
        return seconds

    @contextmanager
    def _extras(self, request: RenderRequest) -> Iterator[dict[str, Any]]:
        """The job's embeddings and IP-Adapter, taken off again whatever happens; what they add to the call."""
        pipe, arguments = self._pipe, {}
        try:
            for ref, asset in request.embeddings:
                pipe.load_textual_inversion(asset.weights, token=ref.token)
            if request.ip_adapter is not None:
                ref, asset, picture = request.ip_adapter
                pipe.load_ip_adapter(asset.weights, image_encoder_folder=None)
                pipe.set_ip_adapter_scale(ref.scale)
                arguments["ip_adapter_image"] = picture
            yield arguments
        finally:
            if request.ip_adapter is not None:
                pipe.unload_ip_adapter()
            if request.embeddings:
                pipe.unload_textual_inversion()

    # Progress and time

    def _count_forwards(self) -> None:
        for model in self._pipe.modules():
            model.register_forward_hook(self._moved)
            for block in model.modules():
                if isinstance(block, ResnetBlock2D):  # some dozens of them in UNet, encoder and decoder, tile by tile
                    block.register_forward_hook(self._moved)

    def _moved(self, *_: nn.Module | torch.Tensor) -> None:
        self._progress += 1

    @contextmanager
    def _stage(self, run: Rendering, name: str) -> Iterator[None]:
        """Time what is within, to the device's last kernel."""
        begin = time.monotonic()
        try:
            yield
            synchronize(self.device)
            self._moved()
        finally:
            run.timings[name] = time.monotonic() - begin
            if run.metered:
                metrics.engine_busy_seconds.inc(run.timings[name])


def _give_way_unbegun(request: RenderRequest) -> None:
    if request.preempted():
        raise Preempted("The job was told to give way before its first step.")


def _hash_folder(folder: Path) -> str:
    """One sha256 over names and bytes of a checkpoint's files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt"):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()
