"""The queue's metrics. They must survive zero workers, so the dispatcher exports them; of several only one does."""

from __future__ import annotations

import time
from collections import Counter, defaultdict

from farm import metrics
from farm.dispatcher.job_seconds import JobSeconds
from farm.dispatcher.lead import Lead
from farm.ledger import Batches, Window

EVERY_SECONDS = 2.0


class Gauges:
    """Fills the gauges while this dispatcher leads, and empties them when it does not."""

    def __init__(
        self, lead: Lead, window: Window, batches: Batches, models: tuple[str, ...], *, growth_priority: int = 0
    ):
        """`models`: whose series exist from the start; others appear with their first job.

        Jobs of a priority below `growth_priority` are told apart: no workers are to be added for them.
        """
        self._lead, self._window, self._batches = lead, window, batches
        self._models, self._at, self._growth_priority = set(models), 0.0, growth_priority
        self._seconds: defaultdict[str, JobSeconds] = defaultdict(JobSeconds)  # of a job, by model

    def refresh(self) -> None:
        """Raises QueueUnavailable. Does nothing more often than every two seconds."""
        if time.monotonic() - self._at < EVERY_SECONDS:
            return
        self._at = time.monotonic()
        if not self._lead.held():
            for gauge in (metrics.queue_jobs, metrics.queue_oldest_seconds, metrics.backlog_gpu_seconds):
                gauge.clear()
            return
        waiting, growing = self._unindexed()
        self._models |= {model for _, model in self._batches.live()} | waiting.keys()
        for model in self._models:
            depths = self._window.depths(model, priority=self._growth_priority)
            counts = (("unindexed", waiting[model]), ("ready", depths.ready), ("hinted", depths.hinted))
            for state, count in (*counts, ("running", depths.running)):
                metrics.queue_jobs.labels(model, state).set(count)
            metrics.queue_oldest_seconds.labels(model).set(depths.oldest)
            seconds = self._seconds[model].seen(self._window.finished(model), depths.spent)
            left = waiting[model] + depths.ready + depths.hinted + depths.running
            growth = growing[model] + depths.urgent
            metrics.backlog_gpu_seconds.labels(model, "true").set(growth * seconds)
            metrics.backlog_gpu_seconds.labels(model, "false").set((left - growth) * seconds)

    def _unindexed(self) -> tuple[Counter[str], Counter[str]]:
        """Jobs that wait in the store, by model, and those of them for which workers are added.

        A batch's are taken to be of the model and the priority of its first job.
        """
        waiting, growing = Counter[str](), Counter[str]()
        for tenant, batch, _ in self._batches.unindexed():
            record = self._batches.record(tenant, batch)
            if record is not None and record.shards:
                left = record.jobs * (record.shards - record.next_shard) // record.shards
                waiting[record.model] += left
                growing[record.model] += left if record.priority >= self._growth_priority else 0
        return waiting, growing
