"""The results of batches that are over, rolled into shards beside their summaries. `farm.shards` reads them.

Each shard is written once, and what it holds never changes; so a dispatcher that dies on the way, or two at once, leave
what the next one goes on from. The jobs' own results stay: they are what ends a job, and what a late hint looks for.
"""

from __future__ import annotations

import logging
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import suppress

from farm import keys
from farm.dispatcher.lead import Lead
from farm.errors import FarmError, InputNotFound, ObjectExists, Transient
from farm.ledger import Batches
from farm.logs import job_context
from farm.shards import MAX_ROLLED_BYTES, READERS, Shelf

log = logging.getLogger(__name__)


class Roller:
    """Works off what `Batches.rolling` names, while it leads. One shard's results are held at a time."""

    def __init__(self, batches: Batches, shelf: Shelf, lead: Lead):
        self._batches, self._shelf, self._lead = batches, shelf, lead

    def roll_all(self) -> int:
        """How many batches were rolled. Raises Transient; what was written stays.

        A batch that cannot be rolled is left to its single results until the next walk over the store names it again.
        """
        count = 0
        for tenant, batch, retries in self._batches.rolling():
            with job_context(batch=batch, tenant=tenant):
                try:
                    if not self._roll(tenant, batch, retries):
                        return count
                    count += 1
                except Transient:
                    raise
                except Exception as error:  # one batch's trouble
                    known = isinstance(error, FarmError)
                    log.warning("the batch's results stay as they are: %s", error, exc_info=not known)
                self._batches.rolled(tenant, batch, retries)
        return count

    def _roll(self, tenant: str, batch: str, retries: int) -> bool:
        """False if this dispatcher leads no more."""
        footer, summary = self._shelf.footer(tenant, batch), self._shelf.summary(tenant, batch)
        if footer is None or summary is None or summary.retries != retries:  # retried since: it will be named again
            return True
        later = self._shelf.generations(tenant, batch, retries=retries)
        with ThreadPoolExecutor(READERS) as pool:
            for shard in range(footer.shards):
                if not self._lead.held():
                    return False
                if not self._shelf.store.exists(uri := keys.rolled(self._shelf.root, tenant, batch, retries, shard)):
                    data = self._rolled(tenant, batch, shard, later, pool)
                    with suppress(ObjectExists):
                        self._shelf.store.put(uri, data, content_type="application/x-ndjson", create_only=True)
        log.info("the batch's results are rolled into %d shards", footer.shards)
        return True

    def _rolled(self, tenant: str, batch: str, shard: int, later: dict[str, int], pool: Executor) -> bytes:
        """A shard's results, a line each; nothing if they are too many bytes to be read at once."""
        refs, lines = self._shelf.refs(tenant, batch, shard, later), []
        size = 0
        for begin in range(0, len(refs), READERS):
            for line in self._shelf.result_lines(refs[begin : begin + READERS], pool):
                if line is None:
                    raise InputNotFound(f"a job of shard {shard} has no result, although all are counted")
                lines.append(line.replace(b"\n", b" ") + b"\n")
                size += len(lines[-1])
            if size > MAX_ROLLED_BYTES:
                return b""
        return b"".join(lines)
