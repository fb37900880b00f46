"""Sends webhooks: in threads of its own, so that neither a slow receiver nor a dead one holds anything else up."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import islice

from pydantic import SecretBytes

from farm import keys, metrics
from farm.config import Settings
from farm.errors import FarmError, InvalidInput, Misconfigured, UrlNotAllowed
from farm.logs import job_context
from farm.shards import Shelf
from farm.tenants import Tenants
from farm.webhooks import message, outbox
from farm.webhooks.address import Resolver, Target, lookup, parse, resolve
from farm.webhooks.message import Event
from farm.webhooks.outbox import Note
from farm.webhooks.post import post

log = logging.getLogger(__name__)

_SENDERS = 4  # requests on their way at once
_PART = 64  # notes in memory at once
_LONGEST_PAUSE = 3600.0  # seconds between two tries
_SHORTEST_PAUSE = 2.0
_GONE = 410  # the receiver wants no more of it
# A host that fails is left alone for twice as long each time, so that its notes do not take the others' turns.
_LONGEST_REST = 60.0


class Webhooks:
    """Looks through the outbox every few seconds and sends what is there.

    A try that fails is made again after a random time up to the event's age (full jitter whose ceiling doubles), at
    most an hour, until FARM_WEBHOOK_GIVE_UP_SECONDS; a dispatcher that starts anew tries at once.
    """

    def __init__(
        self, shelf: Shelf, tenants: Tenants, settings: Settings, *, lead: Callable[[], bool] = lambda: True,
        resolver: Resolver = lookup, context: ssl.SSLContext | None = None,
    ):  # fmt: skip
        """`lead` says whether this dispatcher sends, of several; two that do are harmless."""
        self._shelf, self._tenants, self._settings = shelf, tenants, settings
        self._lead, self._resolver, self._context = lead, resolver, context
        self._not_before: dict[str, float] = {}  # note → when it is tried again
        self._resting: dict[str, float] = {}  # host → until when
        self._failures = Counter[str]()  # of a host, one after the other
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(self._settings.webhook_seconds):
            began = time.monotonic()
            try:
                if self._lead():
                    self.look()
            except FarmError as error:
                log.warning("%s while webhooks are sent: %s", error.code, error)
            except Exception:
                log.exception("webhooks could not be sent; they are tried again")
            # A long list is not gone through all the time.
            self._stop.wait(min(10 * (time.monotonic() - began), 60.0))

    def look(self) -> int:
        """One pass over the outbox; how many were delivered. Raises StoreUnavailable."""
        delivered, seen = 0, set[str]()
        uris = outbox.noted(self._shelf.store, self._shelf.root)
        with ThreadPoolExecutor(_SENDERS, thread_name_prefix="webhook") as pool:
            while not self._stop.is_set() and (part := list(islice(uris, _PART))):
                seen.update(part)
                due = [uri for uri in part if self._not_before.get(uri, 0.0) <= time.monotonic()]
                delivered += sum(pool.map(self._attend, due))
        for uri in self._not_before.keys() - seen:
            del self._not_before[uri]
        return delivered

    # One webhook

    def _attend(self, uri: str) -> bool:
        """See one note through; whether it was delivered. Raises nothing: one note is not another's trouble."""
        try:
            note = outbox.read(self._shelf.store, self._shelf.root, uri)
            if note is None:
                return False
            about = {"job": note.ref.job_id} if note.ref else {}
            with job_context(**about, batch=note.batch_id, tenant=note.tenant):
                return self._tried(note)
        except ValueError as error:
            log.warning("%s", error)
            self._not_before[uri] = time.monotonic() + _LONGEST_PAUSE
        except FarmError as error:
            log.warning("%s: %s", error.code, error)
            self._not_before[uri] = time.monotonic() + self._settings.webhook_seconds
        except Exception:
            log.exception("a webhook could not be seen to")
            self._not_before[uri] = time.monotonic() + _LONGEST_REST
        return False

    def _tried(self, note: Note) -> bool:
        try:
            return self._send(note)
        except (InvalidInput, ValueError) as error:  # what is wrong with it stays wrong
            self._end(note, "refused", str(error))
        except FarmError as error:  # the store is away; or a spec is gone, and that for good
            if time.time() - note.at < self._settings.webhook_give_up_seconds:
                raise
            self._end(note, "given_up", str(error))
        return False

    def _send(self, note: Note) -> bool:
        found = self._job(note) if note.ref else self._batch(note)
        if found is None:  # noted, and not ended yet
            self._later(note, "")
            return False
        target, event = found
        rest = self._resting.get(target.host, 0.0)
        if rest > time.monotonic():
            self._not_before[note.uri] = rest
            return False
        try:
            address = resolve(target, networks=self._settings.webhook_networks, resolver=self._resolver)
            status = post(
                target, address, message.headers(event, timestamp=int(time.time()), secrets=self._secrets(note.tenant)),
                event.body, timeout=self._settings.webhook_timeout, context=self._context,
            )  # fmt: skip
        except UrlNotAllowed as error:  # today: tomorrow the name may lead elsewhere
            self._failed(note, target, str(error), outcome="refused")
            return False
        except (OSError, Misconfigured) as error:
            self._failed(note, target, f"{type(error).__name__}: {error}")
            return False
        if 200 <= status < 300:
            self._failures.pop(target.host, None)
            self._end(note, "delivered", target.host)
            return True
        if status == _GONE:
            self._end(note, "gone", f"{target.host} answered 410")
        else:
            self._failed(note, target, f"answered {status}")
        return False

    def _job(self, note: Note) -> tuple[Target, Event] | None:
        """Where to and what, from the job's own spec and result."""
        ref = note.ref
        assert ref is not None
        result = self._shelf.result(ref)
        if result is None:
            return None
        job = self._tenants.admit(self._shelf.lines([ref])[0], tenant=ref.tenant, batch_id=ref.batch_id)
        if job.webhook_url is None or keys.job_id(ref.tenant, ref.batch_id, job.custom_id) != ref.job_id:
            raise UrlNotAllowed(f"webhook_url: job {ref.job_id} names none.")
        uri = keys.result(self._shelf.root, ref.tenant, ref.batch_id, ref.job_id, ref.generation)
        return parse(job.webhook_url), message.job_event(result, uri)

    def _batch(self, note: Note) -> tuple[Target, Event] | None:
        footer = self._shelf.footer(note.tenant, note.batch_id)
        summary = self._shelf.summary(note.tenant, note.batch_id)
        if summary is None or summary.retries < note.retries:
            return None
        if footer is None or footer.webhook_url is None:
            raise UrlNotAllowed(f"webhook_url: batch {note.batch_id} names none.")
        target = self._tenants.check_webhook(footer.webhook_url, tenant=note.tenant)
        at = summary.finished_at or datetime.fromtimestamp(note.at, UTC)
        return target, message.batch_event(summary, at.isoformat())

    def _secrets(self, tenant: str) -> list[SecretBytes]:
        return [message.secret_of(text) for text in self._tenants.webhook_secrets(tenant)]

    # What came of it

    def _failed(self, note: Note, target: Target, why: str, *, outcome: str = "failed") -> None:
        self._failures[target.host] += 1
        self._resting[target.host] = time.monotonic() + min(_LONGEST_REST, 2.0 ** min(self._failures[target.host], 6))
        if time.time() - note.at > self._settings.webhook_give_up_seconds:
            self._end(note, "given_up", f"{target.host}: {why}")
            return
        metrics.webhooks.labels(outcome).inc()
        self._later(note, f"{target.host}: {why}")

    def _later(self, note: Note, why: str) -> None:
        age = max(0.0, time.time() - note.at)
        pause = random.uniform(0, min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, age)))
        self._not_before[note.uri] = time.monotonic() + pause
        if why:
            log.info("webhook %s: %s; again in %.0f s", note.uri.rpartition("/")[2], why, pause)

    def _end(self, note: Note, outcome: str, why: str) -> None:
        outbox.done(self._shelf.store, note)
        self._not_before.pop(note.uri, None)
        metrics.webhooks.labels(outcome).inc()
        log.log(logging.INFO if outcome == "delivered" else logging.WARNING, "webhook %s: %s", outcome, why)
