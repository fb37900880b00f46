"""Jobs that arrive, are fetched from a slow store, painted in some order, and stored: a worker without its queue."""

from __future__ import annotations

import random
import threading
import time
import zlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from torch import Tensor

from tests.benchmarks.options import Options
from tests.benchmarks.ours import WAIT, Ours
from tests.benchmarks.statistic import Progress
from tests.benchmarks.topologies import attention_layers
from tests.benchmarks.work import Job, make_lora
from worker.engine.lora import LoraWeights
from worker.engine.submission import Painted


@dataclass(frozen=True)
class Arrival:
    """`at`: seconds after the beginning. `loras`: names and scales."""

    number: int
    at: float
    job: Job
    loras: tuple[tuple[str, float], ...]


@dataclass
class Served:
    """By job: seconds from its arrival to its picture in the store, and its latents.

    `worked`: device seconds by stage. `computed`: seconds inside forwards. `wall`: from the first job that could be
    painted to the end of the last one's painting.
    """

    waits: dict[int, float] = field(default_factory=dict)
    latents: dict[int, Tensor] = field(default_factory=dict)
    worked: dict[str, float] = field(default_factory=dict)
    computed: float = 0.0
    wall: float = 0.0
    mean_rows: float = 0.0


class Store:
    """Every request takes its time, the same for every policy; a LoRA is read once."""

    def __init__(self, ours: Ours, options: Options):
        self._ours, self._options, self._lock = ours, options, threading.Lock()
        self._shapes = attention_layers(ours.engine.pipe.unet, options.lora_targets)
        self._loras: dict[str, Future[LoraWeights]] = {}

    def request(self, what: str) -> None:
        time.sleep(random.Random(f"{self._options.seed} {what}").uniform(*self._options.store_delays))

    def lora(self, name: str) -> LoraWeights:
        with self._lock:
            first = name not in self._loras
            future = self._loras.setdefault(name, Future())
        if first:
            try:
                self.request(name)
                seed, rank = zlib.crc32(name.encode()), self._options.ranks[-1]
                future.set_result(self._ours.read(make_lora(self._shapes, rank, seed, self._options.torch_dtype)))
            except BaseException as error:
                future.set_exception(error)
        return future.result(WAIT)


@dataclass
class _Ready:
    """A job whose inputs are here. `painted` is set when it is."""

    arrival: Arrival
    loras: list[LoraWeights]
    painted: Future[Painted] = field(default_factory=Future)

    @property
    def kind(self) -> tuple[object, ...]:
        """Jobs of one kind could be made by one batched call."""
        job = self.arrival.job
        return self.arrival.loras, job.steps, job.guidance_scale, job.side

    def submit(self, ours: Ours) -> Future[Painted]:
        strengths = [scale for _, scale in self.arrival.loras]
        future = ours.submit(self.arrival.job, self.loras, strengths)
        future.add_done_callback(lambda done: _hand_over(done, self.painted))
        return future


def _hand_over(done: Future[Painted], to: Future[Painted]) -> None:
    error = done.exception()
    if error is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())


class AsTheyCome:
    """Each job goes to the engine as soon as its inputs are here; which rows share a step is the engine's business."""

    name = "this engine"

    def __init__(self, ours: Ours):
        self.ours = ours

    def ready(self, one: _Ready) -> None:
        one.submit(self.ours)

    def close(self) -> None:
        """Nothing to end."""


class StaticBatch:
    """Batches that are made up once and run to their end, oldest job first."""

    name = "static batch"

    def __init__(self, ours: Ours):
        self.ours, self._waiting, self._lock = ours, [], threading.Lock()
        self._turn = ThreadPoolExecutor(1)

    def ready(self, one: _Ready) -> None:
        with self._lock:
            self._waiting.append(one)
            self._waiting.sort(key=lambda ready: ready.arrival.number)
        self._turn.submit(self._serve)

    def close(self) -> None:
        self._turn.shutdown()

    def _serve(self) -> None:
        """Paint the next batch, if those that were ready are not painted all."""
        with self._lock:
            if not self._waiting:
                return
            batch = self._batch()
            self._waiting = [one for one in self._waiting if one not in batch]
        for future in [one.submit(self.ours) for one in batch]:
            future.exception(WAIT)

    def _batch(self) -> list[_Ready]:
        first, *others = self._waiting
        batch, rows = [first], first.arrival.job.rows
        for one in others:
            if one.kind == first.kind and rows + one.arrival.job.rows <= self.ours.engine.max_rows:
                batch.append(one)
                rows += one.arrival.job.rows
        return batch


class Fifo(StaticBatch):
    """One job after the other, oldest first."""

    name = "FIFO"

    def _batch(self) -> list[_Ready]:
        return self._waiting[:1]


def serve(
    ours: Ours,
    arrivals: Sequence[Arrival],
    policy: type[AsTheyCome] | type[StaticBatch],
    options: Options,
    *,
    what: str,
) -> Served:
    """All of `arrivals`, at most `options.concurrency` in hand at once. Raises what a job raised."""
    store, served, order = Store(ours, options), Served(), policy(ours)
    progress, in_hand, lock = (
        Progress(what, len(arrivals), "jobs"),
        threading.Semaphore(options.concurrency),
        threading.Lock(),
    )
    first_ready: list[float] = []
    ours.forget()
    begin = time.perf_counter()

    def one(arrival: Arrival) -> None:
        try:
            store.request(f"{arrival.number} image")
            store.request(f"{arrival.number} mask")
            ready = _Ready(arrival, [store.lora(name) for name, _ in arrival.loras])
            with lock:
                first_ready.append(time.perf_counter())
            order.ready(ready)
            painted = ready.painted.result(WAIT)
            store.request(f"{arrival.number} output")
            with lock:
                served.waits[arrival.number] = time.perf_counter() - begin - arrival.at
                served.latents[arrival.number] = painted.request.latents
                progress.step()
        finally:
            in_hand.release()

    with ThreadPoolExecutor(options.concurrency) as threads:
        futures = []
        for arrival in arrivals:
            time.sleep(max(0.0, begin + arrival.at - time.perf_counter()))
            in_hand.acquire()
            futures.append(threads.submit(one, arrival))
        for future in futures:
            future.result(WAIT)
    order.close()
    served.worked, served.computed = dict(ours.worked_seconds), ours.computed_seconds
    served.wall = ours.last_worked - min(first_ready)
    served.mean_rows = sum(rows for rows, _ in ours.steps) / len(ours.steps)
    return served
