"""The loop: what is due, what is to be indexed, what is to be hinted."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby

import redis

from farm import metrics, tracing
from farm.config import Settings
from farm.dispatcher.acceptance import Acceptance
from farm.dispatcher.aside import Aside
from farm.dispatcher.lead import Lead
from farm.dispatcher.orphans import Orphans
from farm.dispatcher.pace import Pace
from farm.dispatcher.reconcile import Reconciler
from farm.dispatcher.rolling import Roller
from farm.errors import QueueForbidden, StoreUnavailable, Transient
from farm.ledger import Batches, JobRef, Ledger, Window
from farm.queue import Hints
from farm.shards import Shelf

log = logging.getLogger(__name__)

LIMIT = 1000  # jobs looked at in one go
QUANTUM = 16  # jobs of one tenant before the next one's turn
LONGEST_SLEEP = 1.0
TIDY_SECONDS = 1.0  # between two looks for what is left to be tidied
STORE_PAUSE_SECONDS = 2.0  # without asking a store that was away


class Dispatcher:
    """Hints what is ready. Any number may run."""

    def __init__(
        self, client: redis.Redis, hints: Hints, shelf: Shelf, settings: Settings, *,
        weights: Mapping[str, float] | None = None,
    ):  # fmt: skip
        """`weights`: of a tenant's fair share, 1 where it has none."""
        self._window, self._hints, self._weights = Window(client), hints, dict(weights or {})
        batches, ledger = Batches(client), Ledger(client)
        self._acceptance = Acceptance(batches, ledger, shelf, settings)
        self._reconciler = Reconciler(self._acceptance, batches, shelf)
        self._recovering = Aside("what has ended is counted again", self._acceptance.recover)
        self._reconcile_seconds, self._reconciled_at = settings.reconcile_seconds, time.monotonic()
        self._look_again_in = settings.hint_look_seconds
        self._reconciling = Aside("the index is made again", self._walk)
        self.lead = Lead(self._window)
        self._batches, self._roller = batches, Roller(batches, shelf, self.lead)
        self._orphans = Orphans(
            batches, shelf, self.lead,
            every_seconds=settings.collect_seconds, grace_seconds=settings.orphan_grace_seconds,
        )  # fmt: skip
        self._rolling = Aside("results are rolled", self._roller.roll_all)
        self._collecting = Aside("orphans are collected", self._orphans.collect)
        self._tidied_at = 0.0
        self._paces: dict[str, Pace] = {}
        self._store_back = 0.0

    def round(self) -> float:
        """Everything that is to be done now; seconds until something may be due again."""
        if self._reconciler.lost():
            self._window.set_weights(self._weights)
            self._reconcile()
        elif time.monotonic() - self._reconciled_at > self._reconcile_seconds:
            self._reconcile()
        self._tidy()
        due = self._window.take_due(limit=LIMIT, look_again_in=self._look_again_in)
        metrics.redeliveries.inc(due.jobs)
        for model in self._window.models():  # before the store is asked for anything: it may be slow, or away
            self._hint(model)
        if self._move_batches(due.batches):
            return 0.0
        return LONGEST_SLEEP if due.next_in is None else min(due.next_in, LONGEST_SLEEP)

    def _move_batches(self, due: Iterable[tuple[str, str]]) -> int:
        """Look at the batches that are due, index what there is room for; the number of jobs indexed."""
        if time.monotonic() < self._store_back:
            return 0
        try:
            for tenant, batch in due:
                self._acceptance.look_at(tenant, batch)
            indexed = self._acceptance.index()
            if self._acceptance.reopened:
                self._recovering.start()
            return indexed
        except StoreUnavailable as error:
            log.warning("%s: %s", error.code, error)
            self._store_back = time.monotonic() + STORE_PAUSE_SECONDS
            return 0

    def _hint(self, model: str) -> None:
        pace = self._paces.setdefault(model, Pace())
        pace.seen(self._window.finished(model))
        refs = self._window.take_ready(
            model, window=pace.window, limit=LIMIT, quantum=QUANTUM, look_again_in=self._look_again_in
        )
        for hint in _grouped(refs, pace.hint_size):
            began = time.time()
            self._hints.publish(hint)
            for ref in hint:
                tracing.span("dispatch", ref, began, time.time())
        metrics.hints.labels(model).inc(len(refs))

    def _reconcile(self) -> None:
        if self._reconciling.start():
            self._reconciled_at = time.monotonic()

    def _walk(self) -> None:
        self._reconciler.whole()
        self._reconciler.collect_states()

    def _tidy(self) -> None:
        """What only one dispatcher does, when it is time to."""
        if time.monotonic() < self._tidied_at + TIDY_SECONDS:
            return
        self._tidied_at = time.monotonic()
        if self._batches.rolling() and self.lead.held():
            self._rolling.start()
        if self._orphans.due():
            self._collecting.start()

    def run(self, stop: threading.Event, *, on_round: Callable[[], object] = lambda: None) -> None:
        """Rounds until `stop` is set. What is away is waited for, and nothing ends the loop."""
        while not stop.is_set():
            try:
                wait = self.round()
                on_round()
                if wait:
                    self._window.wait(wait)
            except (Transient, QueueForbidden) as error:  # a password that is being changed is right again soon
                log.warning("%s: %s", error.code, error)
                stop.wait(0.5)
            except Exception:  # a job's fault must not be everybody's
                log.exception("a round failed; the next one goes on")
                stop.wait(1.0)


def _grouped(refs: Iterable[JobRef], size: int) -> Iterator[list[JobRef]]:
    """Neighbours of one batch, at most `size` in a hint."""
    for _, group in groupby(refs, key=lambda ref: (ref.tenant, ref.batch_id)):
        same = list(group)
        for begin in range(0, len(same), size):
            yield same[begin : begin + size]
