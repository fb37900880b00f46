"""A worker of the farm, all of it but the model: `python -m tests.faults.noop_worker`.

Its renderer paints a plain colour in NOOP_SECONDS ("0.005-0.2"), so that thousands of jobs run on two cores; the rest
is `worker.lifecycle.serve`. No attempt paints the colour of another, so a late worker whose bytes should win would be
seen by their hash. A job's prompt may tell the renderer to misbehave (`CONDUCT`). What the worker was given and
what it won is appended to NOOP_EVENTS/<pid>.ndjson, line by line, so that a kill loses none.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from celery import signals
from PIL import Image

from farm.config import load_settings
from farm.ledger import Claim, JobRef, Ledger
from farm.logs import set_up
from farm.schemas import InpaintJob
from farm.storage import ObjectInfo, ObjectStore
from tests.faults.notes import Notes
from worker import lifecycle
from worker.preemption import Preemption
from worker.runner import Rendered, RenderRequest


def _raise(error: BaseException) -> None:
    raise error


# What a renderer may do to its worker, by the prompt that asks for it.
CONDUCT: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "memory": lambda: _raise(MemoryError()),
    "exit": lambda: _raise(SystemExit(1)),
    "hang": lambda: time.sleep(3600),
}


class Painter:
    device, checkpoint_sha256 = "cpu", "0" * 64

    def __init__(self) -> None:
        self._notes = own_notes()
        low, high = os.environ.get("NOOP_SECONDS", "0.005-0.2").split("-")
        self._low, self._high = float(low), float(high)
        self._moves = self._rendering = 0
        self._left: dict[int, float] = {}  # of a job in hand, the share that is left
        self.on_broken: Callable[[str], object] = lambda why: None

    jobs_at_once = 1

    @property
    def rendering(self) -> bool:
        return self._rendering > 0

    def warm_up(self) -> None:
        pass

    def refresh_metrics(self) -> None:
        pass

    def progress(self) -> int:
        return self._moves

    def read_lora(self, data: bytes) -> bytes:
        return data

    def lora_targets(self) -> dict[str, Any]:
        return {"version": 1, "targets": {}, "stems": {}, "leaves": []}

    read_embedding = read_ip_adapter = read_lora

    def estimate_seconds(self, request: RenderRequest) -> float:
        """Of all of a job, or of what is left of it."""
        return self._seconds(request.job) * self._left.get(id(request.job), 1.0)

    def _seconds(self, job: InpaintJob) -> float:
        told = job.metadata.get("seconds")
        return float(told) if told else random.Random(job.seed).uniform(self._low, self._high)

    def render(self, request: RenderRequest) -> Rendered:
        """As many steps as the job asks for, in the seconds that its metadata say, or else its seed."""
        self._rendering += 1
        self._notes.write(kind="painting", name=request.job.custom_id, at=time.time())
        try:
            return self._painted(request)
        finally:
            self._rendering -= 1
            self._left.pop(id(request.job), None)

    def _painted(self, request: RenderRequest) -> Rendered:
        job, began = request.job, time.monotonic()
        steps = job.num_inference_steps
        for step in range(int(request.resume or 0), steps):
            self._left[id(job)] = 1 - step / steps
            if request.preempted():
                raise Preemption(b"%d" % step, step)
            time.sleep(self._seconds(job) / steps)
            if "seconds" in job.metadata:  # a test of one fault; in a long run there are too many
                self._notes.write(kind="step", name=job.custom_id, step=step, at=time.time())
            if step == steps // 2 and job.prompt in CONDUCT:
                CONDUCT[job.prompt]()
            self._moves += 1
            request.on_step()
        colour = tuple(random.SystemRandom().randrange(1, 256) for _ in "rgb")
        pictures = [Image.new("RGB", request.image.size, colour) for _ in range(job.num_images_per_prompt)]
        return Rendered(pictures, {"denoise": time.monotonic() - began})


def own_notes() -> Notes:
    return Notes(Path(os.environ["NOOP_EVENTS"]) / f"{os.getpid()}.ndjson")


def watched_store(store: ObjectStore, notes: Notes) -> ObjectStore:
    """The store, noting each create-once write that succeeds."""
    put = store.put

    def noted(uri: str, data: bytes, **options: Any) -> ObjectInfo:
        info = put(uri, data, **options)
        if options["create_only"]:
            notes.write(kind="won", uri=uri, at=time.time())
        return info

    store.put = noted
    return store


def watched_ledger(notes: Notes) -> type[Ledger]:
    """A ledger that notes each claim that succeeds, and when it may have happened."""

    class Watched(Ledger):
        def claim(self, refs: Sequence[JobRef], *, lease_seconds: float) -> list[Claim]:
            begin = time.time()
            claims = super().claim(refs, lease_seconds=lease_seconds)
            for ref, claim in zip(refs, claims, strict=True):
                if claim.attempt:
                    notes.write(kind="claimed", job=ref.job_id, attempt=claim.attempt, begin=begin, at=time.time())
            return claims

        def release(self, ref: JobRef, owner: str, *, charged: bool = True, **options: Any) -> bool:
            released = super().release(ref, owner, charged=charged, **options)
            if not charged:
                notes.write(kind="given back", job=ref.job_id, at=time.time())
            return released

    return Watched


def main() -> int:
    settings = load_settings()
    set_up(settings.log_level)
    notes = own_notes()
    signals.worker_shutting_down.connect(lambda **_: notes.write(kind="draining", at=time.time()), weak=False)
    signals.worker_ready.connect(lambda **_: notes.write(kind="ready", at=time.time()), weak=False)
    lifecycle.Ledger = watched_ledger(notes)
    open_store = type(settings).open_store
    type(settings).open_store = lambda self: watched_store(open_store(self), notes)
    return lifecycle.serve(settings, Painter())


if __name__ == "__main__":
    sys.exit(main())
