"""One run: jobs come, the autoscaler reads and decides, workers render, until nothing calls for workers any more."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import simpy

from tests.simulation.arrivals import Job
from tests.simulation.cluster import Cluster, Nodes
from tests.simulation.policy import HPA_SYNC, Autoscaler, Reading, Scaling

SCRAPE = 15.0  # seconds between two readings: monitoring.podMonitor.interval

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Sample:
    """At a moment: seconds since the begin, workers that are meant to be, and device seconds of work left."""

    at: float
    count: int
    work: float


@dataclass
class Trial:
    """A pool that may be empty (`scaling.least` 0), from its first job to its last node."""

    scaling: Scaling
    nodes: Nodes
    seed: int
    samples: list[Sample] = field(default_factory=list)
    arrived: bool = False

    def run(self, jobs: Iterable[Job]) -> Cluster:
        """`jobs` in the order of their acceptance; they are changed."""
        assert self.scaling.least == 0, "a pool that keeps workers never ends"
        self.env = simpy.Environment()
        self.cluster = Cluster(self.env, self.nodes, self.seed)
        self.autoscaler = Autoscaler(self.scaling)
        self.env.process(self._arrive(jobs))
        over = self.env.process(self._scrape())
        self.env.process(self._decide(self.autoscaler.keda, self.scaling.polling))
        self.env.process(self._decide(self.autoscaler.hpa, HPA_SYNC))
        self.env.run(until=over)
        return self.cluster

    def _arrive(self, jobs: Iterable[Job]) -> Steps:
        for job in jobs:
            if job.accepted > self.env.now:
                yield self.env.timeout(job.accepted - self.env.now)
            self.cluster.queue.accept(job)
        self.arrived = True

    def _scrape(self) -> Steps:
        queue = self.cluster.queue
        while not (self.arrived and not queue.left[False] and not self.cluster.there()):
            self.reading = queue.reading()
            self.samples.append(Sample(self.env.now, self.cluster.count, sum(queue.work.values())))
            yield self.env.timeout(SCRAPE)

    def _decide(self, controller: Callable[[float, Reading, int], int], every: float) -> Steps:
        while True:
            yield self.env.timeout(every)
            self.cluster.scale(controller(self.env.now, self.reading, self.cluster.count))
