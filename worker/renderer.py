"""The warm pipeline: loaded once, one job at a time, each job's LoRAs put on before it and taken off by the next.

The lock around a render is what "one thread owns the device" means here; fetching, decoding and writing of other jobs
go on beside it.
"""

from __future__ import annotations

import hashlib
import logging
import resource
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from farm import metrics
from farm.config import Settings
from farm.errors import FeatureUnavailable, Misconfigured, NsfwContent, WorkerFatal
from farm.schemas import InpaintJob
from farm.weights import read_header
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.ip_adapter import read_ip_adapter
from worker.engine.lora import LoraMerger, read_lora
from worker.engine.textual_inversion import read_embedding
from worker.runner import Rendered, RenderRequest
from worker.samplers import sampler

log = logging.getLogger(__name__)

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class WarmRenderer:
    """One checkpoint on one device. Raises Misconfigured or the engine's CheckpointInvalid when it cannot be had."""

    def __init__(self, settings: Settings):
        if settings.model_path is None:
            raise Misconfigured("FARM_MODEL_PATH is not set; give the folder of a checkpoint in the diffusers layout.")
        self._settings = settings
        self.device = _device(settings.device)
        dtype = settings.dtype
        if dtype == "auto":
            dtype = "float32" if self.device == "cpu" else "float16"
        if dtype not in _DTYPES:
            raise Misconfigured(f"FARM_DTYPE is {dtype!r}; choose one of {', '.join(_DTYPES)} or auto.")
        self.checkpoint_sha256 = _hash_folder(settings.model_path)
        self._pipe = StableDiffusionInpaintPipeline.from_pretrained(settings.model_path, torch_dtype=_DTYPES[dtype])
        self._pipe.to(self.device)
        self._pipe.set_progress_bar_config(disable=True)
        self._checkpoint_scheduler = self._pipe.scheduler
        self._merger = LoraMerger(self._pipe.unet, self._pipe.text_encoder)
        self._lock = threading.Lock()
        self._progress = 0

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
        """Render a grey square at every bucket, so that the first job meets a warm device."""
        begin = time.monotonic()
        for width, height in self._settings.buckets():
            grey, white = Image.new("RGB", (width, height), (128, 128, 128)), Image.new("L", (width, height), 255)
            job = InpaintJob(image="file:///warm-up", num_inference_steps=1)
            self.render(RenderRequest(job, grey, white, seed=0, on_step=lambda: None))
        log.info("warm after %.1f s", time.monotonic() - begin)

    def progress(self) -> int:
        return self._progress

    def render(self, request: RenderRequest) -> Rendered:
        with self._lock, torch.inference_mode():
            swap_seconds = self._put_on(request)
            try:
                with self._extras(request) as arguments:
                    return self._paint(request, swap_seconds, arguments)
            except RuntimeError as error:
                if "CUDA error" in str(error):  # sticky: nothing more can be done on this device by this process
                    raise WorkerFatal(f"The device failed: {str(error).splitlines()[0]}") from error
                raise

    def _put_on(self, request: RenderRequest) -> float:
        """The job's LoRAs on the model, and only those; seconds it took, 0 if they were there already."""
        begin = time.monotonic()
        wanted = [(lora.weights, ref.scale, ref.scale) for ref, lora in request.loras]
        if not self._merger.set_adapters(wanted, check_finite=True):
            if wanted:
                metrics.lora_swaps.labels("resident").inc()
            return 0.0
        _synchronize(self.device)
        seconds = time.monotonic() - begin
        if wanted:
            slowest = "remote" if any(lora.tier == "remote" for _, lora in request.loras) else "ram"
            metrics.lora_swaps.labels(slowest).inc()
            metrics.lora_swap_seconds.observe(seconds)
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

    def _paint(self, request: RenderRequest, swap_seconds: float, arguments: dict[str, Any]) -> Rendered:
        job, pipe = request.job, self._pipe
        marks = [time.monotonic()]

        def mark() -> None:
            _synchronize(self.device)
            marks.append(time.monotonic())
            self._progress += 1

        pipe.scheduler = sampler(job.scheduler, self._checkpoint_scheduler)
        # Noise comes from CPU generators, one an image, so that it is the same on every device and in every batch.
        seeds = tuple(request.seed + index for index in range(job.num_images_per_prompt))
        state = pipe.prepare_request(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            # One copy for each picture: each then draws from its own generator only, and is that seed's picture.
            image=[request.image] * job.num_images_per_prompt,
            mask_image=[request.mask] * job.num_images_per_prompt,
            width=request.image.width,
            height=request.image.height,
            strength=job.strength,
            num_inference_steps=job.num_inference_steps,
            guidance_scale=job.guidance_scale,
            num_images_per_prompt=job.num_images_per_prompt,
            eta=job.eta,
            generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            clip_skip=job.clip_skip,
            **arguments,
        )
        # The one scheduler with a random path of its own (DPMSolverSDE) takes the same seeds.
        state = replace(state, state=replace(state.state, seed=seeds))
        mark()
        while not state.done:
            (state,) = pipe.denoise_step([state])
            self._progress += 1
            request.on_step()
        mark()
        output = pipe.finish_request(state)
        mark()
        metrics.denoise_steps.inc(job.num_images_per_prompt * state.num_timesteps)
        metrics.engine_busy_seconds.inc(marks[-1] - marks[0])
        if any(output.nsfw_content_detected or ()):
            raise NsfwContent("The checkpoint's safety checker flagged the picture; change the prompt or the seed.")
        names = ("vae_encode", "denoise", "vae_decode")
        timings = {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}
        return Rendered(output.images, {"lora": swap_seconds, **timings}, swap_seconds)

    def refresh_metrics(self) -> None:
        """Read the device's memory for a scrape."""
        for kind, size in _memory(self.device).items():
            metrics.vram_bytes.labels(self.device, kind).set(size)


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError:
        raise Misconfigured(f"FARM_DEVICE is {wanted!r}; use auto, cpu, cuda or cuda:0.") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise Misconfigured("FARM_DEVICE asks for CUDA, but torch finds no CUDA device here.")
    return wanted


def _synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def _memory(device: str) -> dict[str, int]:
    if device == "cpu":
        resident = psutil.Process().memory_info().rss
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {"allocated": resident, "reserved": resident, "peak": peak, "total": psutil.virtual_memory().total}
    return {
        "allocated": torch.cuda.memory_allocated(device),
        "reserved": torch.cuda.memory_reserved(device),
        "peak": torch.cuda.max_memory_allocated(device),
        "total": torch.cuda.mem_get_info(device)[1],
    }


def _hash_folder(folder: Path) -> str:
    """One sha256 over names and bytes of a checkpoint's files, in the order of their names."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".safetensors", ".json", ".txt"):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            total.update(f"{path.relative_to(folder).as_posix()} {digest}\n".encode())
    return total.hexdigest()
