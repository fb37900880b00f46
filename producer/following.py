"""Results of accepted jobs as they come, with a bounded number in mind: what `map`, `watch` and `farm run` stand on.

The index says cheaply which jobs have not ended; only the others are looked for in the store. When the index is away,
the store is asked about everything now and then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from farm import keys
from farm.errors import QueueUnavailable, ResultTimeout, Transient
from farm.ledger import JobRef
from farm.schemas import JobResult
from farm.shards import Shelf
from producer.index import Index
from producer.results import READERS, read_results

log = logging.getLogger(__name__)

_SHORTEST, _LONGEST = 0.05, 1.0  # seconds between two looks
_BLIND_SECONDS = 5.0  # between two looks into the store while the index is away
_WHOLE_SECONDS = 5.0  # between two looks at every job, whatever the counts of its batch say

WINDOW = 4000  # jobs: as many as the dispatcher indexes at once of a tenant and a model

Refs = Iterator[Sequence[JobRef]]
Flying = dict[int, JobRef]


class Following:
    """Looks at accepted jobs until they have ended. At most `window` of them are looked at, or held back for order."""

    def __init__(self, index: Index, shelf: Shelf, *, window: int = WINDOW):
        self._index, self._shelf, self._window = index, shelf, window
        self._marks: dict[tuple[str, str], object] = {}  # batch → what its counts were when all was looked at
        self._whole_at = self._blind_until = 0.0

    def results(
        self, groups: Refs, *, ordered: bool, timeout: float | None = None,
        on_result: Callable[[JobResult], object] = lambda _: None, on_wait: Callable[[], object] = lambda: None,
    ) -> Iterator[JobResult]:  # fmt: skip
        """The result of every job of `groups`, in their order or as they end.

        A group is asked for when there is room for it, so that whoever makes groups by submitting them submits no more
        than this consumer takes. `on_result` is told of each as soon as it is read, `on_wait` is called before a pause.
        Raises ResultTimeout when none has ended for `timeout` seconds.
        """
        flying: Flying = {}
        held: dict[int, JobResult] = {}
        given = taken = 0
        more, pause, last = True, _SHORTEST, time.monotonic()
        with ThreadPoolExecutor(READERS) as pool:
            while True:
                while more and len(flying) + len(held) < self._window:
                    group = next(groups, None)
                    more = group is not None
                    for ref in group or ():
                        flying[taken] = ref
                        taken += 1
                    self._marks.clear()
                if not flying and not held:
                    return
                found = self._ended(pool, flying)
                for place, result in found:
                    del flying[place]
                    on_result(result)
                    if ordered:
                        held[place] = result
                    else:
                        yield result
                while given in held:
                    yield held.pop(given)
                    given += 1
                if found:
                    pause, last = _SHORTEST, time.monotonic()
                    if not flying:
                        continue
                elif timeout is not None and time.monotonic() - last > timeout:
                    raise ResultTimeout(f"None of {len(flying):,} jobs has ended for {timeout:g} s.")
                on_wait()
                time.sleep(pause)
                pause = min(pause * 1.5, _LONGEST)

    def _ended(self, pool: ThreadPoolExecutor, flying: Flying) -> list[tuple[int, JobResult]]:
        places = self._candidates(flying)
        try:
            results = read_results(self._shelf, [flying[place] for place in places], pool)
        except Transient as error:  # a run of hours outlives a store that is away for minutes
            log.warning("%s: %s", error.code, error)
            self._marks.clear()
            return []
        return [(place, result) for place, result in zip(places, results, strict=True) if result is not None]

    def _candidates(self, flying: Flying) -> list[int]:
        """Those that the index does not call unfinished."""
        try:
            indexed = self._changed({(ref.tenant, ref.batch_id) for ref in flying.values()})
            places = [place for place, ref in flying.items() if ref.shard < indexed[ref.tenant, ref.batch_id]]
            unfinished = self._index.unfinished([flying[place] for place in places])
        except QueueUnavailable:
            if time.monotonic() < self._blind_until:
                return []
            self._blind_until = time.monotonic() + _BLIND_SECONDS
            return list(flying)
        return [place for place, waits in zip(places, unfinished, strict=True) if not waits]

    def _changed(self, batches: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
        """Batch → its first shard of which the absence of rows says nothing: all of them where nothing has changed."""
        if time.monotonic() - self._whole_at > _WHOLE_SECONDS:
            self._whole_at = time.monotonic()
            self._marks.clear()
        indexed: dict[tuple[str, str], int] = {}
        for batch in batches:
            record = self._index.batches.record(*batch)
            mark = record and (record.state, record.next_shard, record.live, sum(record.counts.values()))
            if record is None:  # it is over, or was a job alone
                indexed[batch] = 1 << 62
            elif record.state == "accepting":
                indexed[batch] = 0  # a job alone (SINGLE) is looked at
            elif self._marks.get(batch) == mark:
                indexed[batch] = keys.SINGLE
            else:
                indexed[batch] = record.next_shard
            self._marks[batch] = mark
        return indexed


def skipping(groups: Refs, count: int) -> Refs:
    """`groups` without their first `count` jobs."""
    left = count
    for group in groups:
        rest = group[left:]
        left = max(0, left - len(group))
        if rest:
            yield rest
