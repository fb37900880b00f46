"""The queue's metrics. They must survive zero workers, so the dispatcher exports them; of several only one does."""

from __future__ import annotations

import time
from collections import Counter

from farm import metrics
from farm.dispatcher.lead import Lead
from farm.ledger import Batches, Window

EVERY_SECONDS = 2.0
_FIRST_GUESS = 1.0  # seconds a job, before any has ended


class Gauges:
    """Fills the gauges while this dispatcher leads, and empties them when it does not."""

    def __init__(self, lead: Lead, window: Window, batches: Batches, models: tuple[str, ...]):
        """`models`: whose series exist from the start; others appear with their first job."""
        self._lead, self._window, self._batches = lead, window, batches
        self._models, self._at = set(models), 0.0

    def refresh(self) -> None:
        """Raises QueueUnavailable. Does nothing more often than every two seconds."""
        if time.monotonic() - self._at < EVERY_SECONDS:
            return
        self._at = time.monotonic()
        if not self._lead.held():
            for gauge in (metrics.queue_jobs, metrics.queue_oldest_seconds, metrics.backlog_gpu_seconds):
                gauge.clear()
            return
        self._models |= set(self._window.models())
        unindexed = self._unindexed()
        for model in self._models:
            depths, finished = self._window.depths(model), self._window.finished(model)
            waiting = unindexed[model]
            counts = (("unindexed", waiting), ("ready", depths.ready), ("hinted", depths.hinted))
            for state, count in (*counts, ("running", depths.running)):
                metrics.queue_jobs.labels(model, state).set(count)
            metrics.queue_oldest_seconds.labels(model).set(depths.oldest)
            seconds = depths.spent / finished if finished else _FIRST_GUESS
            left = waiting + depths.ready + depths.hinted + depths.running
            metrics.backlog_gpu_seconds.labels(model).set(left * seconds)

    def _unindexed(self) -> Counter[str]:
        """Jobs that wait in the store, by model; a batch's are taken to be of the model of its first job."""
        waiting: Counter[str] = Counter()
        for tenant, batch, _ in self._batches.unindexed():
            record = self._batches.record(tenant, batch)
            if record is not None and record.shards:
                waiting[record.model] += record.jobs * (record.shards - record.next_shard) // record.shards
        return waiting
