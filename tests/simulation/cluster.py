"""Nodes that come and go, and the workers on them: start, render, drain, die. Every second is accounted for."""

from __future__ import annotations

import math
import random
from collections import Counter, deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import simpy

from farm.dispatcher.job_seconds import JobSeconds
from tests.simulation.arrivals import Job
from tests.simulation.policy import Reading

Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Nodes:
    """Assumptions about a cloud's GPU nodes, one worker on each. Seconds, except for the price."""

    boot: float = 100.0  # the median until a node has joined
    start: float = 140.0  # the median for a worker: image pulled, checkpoint loaded, a picture of each size painted
    spread: float = 0.35  # of both, of the logarithm
    linger: float = 60.0  # an empty node is paid for until it is taken away
    life: float = 6 * 3600.0  # mean, until a spot node is taken (math.inf: never)
    unannounced: float = 0.1  # of those that are taken: no notice; the job begins again
    lease: float = 60.0  # FARM_LEASE_SECONDS: how long such a job is missing
    drain: float = 60.0  # FARM_DRAIN_SECONDS: what takes less is finished after a notice, the rest is saved
    save: float = 2.0  # a step, and the state's upload
    price: float = 0.45  # of a node for an hour


class Queue:
    """Jobs in the order of their coming, the low ones last; and what the dispatcher knows of them."""

    def __init__(self, env: simpy.Environment):
        self._env, self._more = env, env.event()
        self._waiting: dict[bool, deque[Job]] = {False: deque(), True: deque()}
        self.left = {False: 0, True: 0}  # jobs that have not ended, by whether they are low: waiting or with a worker
        self.work = {False: 0.0, True: 0.0}  # seconds of these
        self.ended, self.spent, self._job_seconds = 0, 0.0, JobSeconds()

    def accept(self, job: Job) -> None:
        self.left[job.low] += 1
        self.work[job.low] += job.seconds
        self._waiting[job.low].append(job)
        self._tell()

    def give_back(self, job: Job) -> None:
        """From a worker that ended: it is next."""
        self._waiting[job.low].appendleft(job)
        self._tell()

    def give_back_after(self, seconds: float, job: Job) -> Steps:
        yield self._env.timeout(seconds)
        self.give_back(job)

    def take(self) -> Job | None:
        for low in (False, True):
            if self._waiting[low]:
                return self._waiting[low].popleft()
        return None

    def waiting(self) -> list[Job]:
        return [*self._waiting[False], *self._waiting[True]]

    def more(self) -> simpy.Event:
        """When a job comes."""
        if self._more.triggered:
            self._more = self._env.event()
        return self._more

    def _tell(self) -> None:
        if not self._more.triggered:
            self._more.succeed()

    def end(self, job: Job) -> None:
        self.left[job.low] -= 1
        self.work[job.low] = self.left[job.low] and self.work[job.low] - job.seconds  # without a rest that is rounding
        self.ended += 1
        self.spent += job.seconds

    def reading(self) -> Reading:
        jobs = self.left[False]
        mean = self._job_seconds.seen(self.ended, self.spent)
        return Reading(jobs, jobs * mean, jobs * (self.spent / self.ended if self.ended else mean), self.work[False])


class Worker:
    """A node and its worker. `spent`: seconds of the node by what they went into."""

    def __init__(self, cluster: Cluster, number: int):
        self.cluster, self.env = cluster, cluster.env
        self.draw = random.Random(f"{cluster.seed} {number}")
        self.launched = self.since = self.env.now
        self.spent: Counter[str] = Counter()
        self.state = "starting"
        self.job: Job | None = None
        self.leaving = False
        self.gone: float | None = None
        self.process = self.env.process(self._life())
        if math.isfinite(cluster.nodes.life):
            self.env.process(self._taken())

    def leave(self, *, announced: bool = True) -> None:
        """Told to end (scale-in, or a spot node's notice), or gone at once."""
        self.leaving = True
        self.process.interrupt(announced)

    def _life(self) -> Steps:
        nodes = self.cluster.nodes
        try:
            for median in (nodes.boot, nodes.start):
                yield self.env.timeout(median * math.exp(nodes.spread * self.draw.gauss(0, 1)))
            while True:
                job = self.job = self.cluster.queue.take()
                if job is None:
                    self._turn("idle")
                    yield self.cluster.queue.more()
                else:
                    self._turn("rendering")
                    yield self.env.timeout(job.left)
                    self._end(job)
        except simpy.Interrupt as told:
            announced = told.cause
        if announced:
            yield from self._drain()
            self._turn("lingering")
            yield self.env.timeout(nodes.linger)
        elif self.job is not None:
            self.state = "lost"  # what was "rendering" since this job began
            self.env.process(self.cluster.queue.give_back_after(nodes.lease, self.job))
        self._turn("gone")
        self.gone = self.env.now

    def _drain(self) -> Steps:
        """What a worker does after SIGTERM: finish what fits, save what does not."""
        nodes, job = self.cluster.nodes, self.job
        if job is None:
            return
        left = job.left - (self.env.now - self.since)
        if left <= nodes.drain:
            yield self.env.timeout(left)
            self._end(job)
            return
        job.left = left
        self._turn("saving")
        yield self.env.timeout(nodes.save)
        self.cluster.queue.give_back(job)

    def _end(self, job: Job) -> None:
        self._turn("idle")
        self.cluster.ended(job)

    def _turn(self, state: str) -> None:
        self.spent[self.state] += self.env.now - self.since
        self.state, self.since = state, self.env.now

    def _taken(self) -> Steps:
        """A spot node's end."""
        yield self.env.timeout(self.draw.expovariate(1 / self.cluster.nodes.life))
        if not self.leaving:
            self.leave(announced=self.draw.random() >= self.cluster.nodes.unannounced)
            self.cluster.preempted += 1
            self.cluster.scale(self.cluster.count)  # another in its place


def _cheapest_to_end(worker: Worker) -> int:
    return ("starting", "idle", "rendering").index(worker.state)


class Cluster:
    """A Deployment and its nodes: keeps as many workers as it was told (`scale`)."""

    def __init__(self, env: simpy.Environment, nodes: Nodes, seed: int):
        self.env, self.nodes, self.seed = env, nodes, seed
        self.queue = Queue(env)
        self.workers: list[Worker] = []  # all there ever were
        self.count = self.preempted = self.images = 0
        self.waits: list[float] = []  # from acceptance to the end, of the jobs that may call workers

    def ended(self, job: Job) -> None:
        self.queue.end(job)
        self.images += job.images
        if not job.low:
            self.waits.append(self.env.now - job.accepted)

    def scale(self, count: int) -> None:
        """Kubernetes ends workers that are not ready first, then by pod-deletion-cost: the idle."""
        self.count = count
        alive = sorted(self.alive(), key=_cheapest_to_end)
        for worker in alive[: max(0, len(alive) - count)]:
            worker.leave()
        for _ in range(count - len(alive)):
            self.workers.append(Worker(self, len(self.workers)))

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.leaving]

    def there(self) -> list[Worker]:
        """Nodes that are paid for."""
        return [worker for worker in self.workers if worker.gone is None]
