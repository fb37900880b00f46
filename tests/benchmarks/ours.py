"""This engine as a contender: warmed and measured as a worker does it, jobs in, latents out, seconds by stage."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import torch
from torch import Tensor

from tests.benchmarks.options import Options
from tests.benchmarks.statistic import interleaved, on_device
from tests.benchmarks.topologies import Topology
from tests.benchmarks.work import Job, Lora
from worker.engine import InpaintEngine
from worker.engine.listener import Listener
from worker.engine.lora import Adapter, LoraWeights, read_lora
from worker.engine.lora.choice import Costs
from worker.engine.stopwatch import Work
from worker.engine.submission import Painted, Submission

WAIT = 3600.0  # seconds for one job; a full-size step takes seconds on a laptop
# What the warm-up of a worker tries, by device: numbers of rows, numbers of distinct sets.
TRIALS = {"cpu": ((2, 4), (1, 2)), "cuda": ((2, 4, 8, 16, 32), (1, 2, 4, 8))}
# Beliefs that leave the cost model one choice only: rows are dear and a merge is free, or the other way round.
_ROWS = (1, 2, 4, 8, 16, 32)
ALWAYS_MERGED = Costs({rows: float(rows) for rows in _ROWS}, {0: 0.0, 16: 0.0}, {(16, 1): 1.0})
ALWAYS_MIXED = Costs(dict.fromkeys(_ROWS, 1.0), {0: 50.0, 16: 50.0}, {(16, 1): 0.0})


class Ours(Listener):
    """Since `forget`: seconds by stage, and inside forwards, as a worker's metrics count them."""

    def __init__(self, topology: Topology, options: Options, *, max_rows: int | None = None):
        self.name = "this engine"
        self._options = options
        self.forget()
        self.engine = InpaintEngine(topology.ours(), listener=self, **({"max_rows": max_rows} if max_rows else {}))
        self.costs: Costs | None = None

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()

    def warm_up(self, rows: Sequence[int] = (), sets: Sequence[int] = ()) -> Costs:
        """What a worker's warm-up does, and the measuring in any case: an engine that has not does not choose."""
        side = self._options.side
        usual = TRIALS[torch.device(self._options.device).type]
        self.paint(Job(seed=0, steps=1, side=side))
        self.engine.quicken(side, side, rows=2, repeats=self._repeats)
        self.costs = self.engine.measure(
            side, side, rows=rows or usual[0], sets=sets or usual[1], repeats=self._repeats
        )
        return self.costs

    @property
    def _repeats(self) -> int:
        return 1 if self._options.size == "full" else 3

    def bare_row_steps(self, *, what: str) -> float:
        """Rows times steps a second of a loop that does nothing but forwards, texts and times made before."""
        unet, side = self.engine.pipe.unet, self._options.side // 8

        def timed(rows: int) -> Callable[[int], float]:
            where = {"device": unet.device, "dtype": unet.dtype}
            sample = torch.randn(rows, unet.config.in_channels, side, side).to(**where)
            text = torch.randn(rows, 77, unet.config.cross_attention_dim).to(**where)
            with torch.no_grad():
                made = unet.time_states(torch.full((rows,), 500.0)), unet.text_keys_values(text)
            return on_device(lambda: unet(sample, *made), str(unet.device))

        sizes = sorted({2, self.engine.max_rows})
        found = interleaved({str(rows): timed(rows) for rows in sizes}, 2 * self._options.repeat, what=what)
        return max(int(rows) / statistics.median(values) for rows, values in found.items())

    def believe(self, costs: Costs) -> None:
        """Decide by these costs from now on."""
        most = self.engine.max_rows
        self.engine.use(costs, self._options.side, self._options.side)
        self.engine.max_rows = most

    # Jobs

    def read(self, lora: Lora) -> LoraWeights:
        """As the bank hands it over: parsed, checked, in RAM or on the device, not yet used."""
        return read_lora(dict(lora.tensors), self.engine.merger.table).to(self._options.device)

    def submit(self, job: Job, loras: Sequence[LoraWeights] = (), strengths: Sequence[float] = ()) -> Future[Painted]:
        strengths = strengths or [1.0] * len(loras)
        adapters = tuple(Adapter(one, strength, strength) for one, strength in zip(loras, strengths, strict=True))
        return self.engine.submit(Submission(job.arguments(), self.engine.pipe.scheduler, adapters))

    def paint(self, job: Job, *loras: LoraWeights) -> Painted:
        return self.submit(job, loras).result(WAIT)

    def latents(self, job: Job, *loras: LoraWeights) -> Tensor:
        return self.paint(job, *loras).request.latents

    def seconds(self, job: Job, *loras: LoraWeights) -> float:
        """From the call to the picture."""
        begin = time.perf_counter()
        self.paint(job, *loras)
        return time.perf_counter() - begin

    # What the engine tells

    def forget(self) -> None:
        self.worked_seconds: dict[str, float] = {}
        self.computed_seconds = 0.0
        self.steps: list[tuple[int, float]] = []
        """Rows and seconds of each forward."""
        self.last_worked = 0.0

    def worked(self, stage: str, work: Work, seconds: float) -> None:
        self.worked_seconds[stage] = self.worked_seconds.get(stage, 0.0) + seconds
        self.last_worked = time.perf_counter()
        if stage == "denoise":
            self.steps.append((work.rows, seconds))

    def computed(self, seconds: float) -> None:
        self.computed_seconds += seconds
