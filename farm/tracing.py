"""Traces (OpenTelemetry, the extra `traces`): off unless OTEL_EXPORTER_OTLP_ENDPOINT says where they go, over HTTP.

A job's id is 32 hex digits, and so is a trace's: the job's trace needs no other name. The span that stands for all of
the job has an id that follows from job and generation, so whoever has a hand in the job, client, dispatcher or any
worker, hangs its spans below the same one, and nothing has to travel with a job that its hint does not carry already.

    job                  from the index to the result, by the worker whose result it is; linked to its batch
      submit             by the client
      dispatch           by the dispatcher
      queue_wait         by the worker that has the first attempt
      attempt            by a worker, one more for each
        fetch decode render encode store, and in render lora vae_encode denoise vae_decode

A batch is a trace of its own, of its id, with one span `submit`. The other OTEL_* variables mean what they always do;
of many jobs a share is traced with OTEL_TRACES_SAMPLER=traceidratio, which every process decides alike.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import farm
from farm import keys
from farm.errors import Misconfigured
from farm.ledger.records import JobRef

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, SpanContext

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

_ID = re.compile("[0-9a-f]{32}")

Attributes = Mapping[str, str | int | float | bool]

_whole: ContextVar[tuple[int, int] | None] = ContextVar("trace and id of the span that stands for a job", default=None)


def is_on() -> bool:
    return any(os.environ.get(name) for name in _ENDPOINTS)


def begin(service: str) -> None:
    """Name this process in its traces. Raises Misconfigured where traces are wanted and the extra is not installed."""
    if is_on():
        os.environ.setdefault("OTEL_SERVICE_NAME", service)
        _provider()


def span(
    name: str,
    ref: JobRef,
    begin: float,
    end: float,
    *,
    below: Span | None = None,
    attributes: Attributes | None = None,
    error: str = "",
) -> Span | None:
    """Tell of something that was done for a job, from `begin` to `end` (Unix seconds); None where traces are off.

    `below`: a span of this process that it belongs to, else the job's own. `error`: the code of what went wrong.
    """
    if not is_on():
        return None
    from opentelemetry.trace import NonRecordingSpan, set_span_in_context

    parent = set_span_in_context(below or NonRecordingSpan(_context(ref.job_id, ref.generation)))
    about = {"farm.generation": ref.generation, **(attributes or {})}
    return _told(name, begin, end, context=parent, attributes=about, error=error)


def job(ref: JobRef, begin: float, end: float, *, attributes: Attributes, error: str = "") -> None:
    """Tell of a job that has ended, once: what all its other spans hang below."""
    if not is_on():
        return
    from opentelemetry.context import Context
    from opentelemetry.trace import Link

    links = [] if ref.shard == keys.SINGLE else [Link(_context(ref.batch_id, 0))]
    about = {
        "farm.tenant": ref.tenant, "farm.batch": ref.batch_id, "farm.model": ref.model,
        "farm.generation": ref.generation, **attributes,
    }  # fmt: skip
    token = _whole.set(_ids(ref.job_id, ref.generation))
    try:
        _told("job", begin, end, context=Context(), attributes=about, error=error, links=links)
    finally:
        _whole.reset(token)


def batch(tenant: str, batch_id: str, jobs: int, begin: float, end: float) -> None:
    """Tell of a batch that was accepted."""
    if not is_on():
        return
    from opentelemetry.context import Context

    token = _whole.set(_ids(batch_id, 0))
    try:
        _told("submit", begin, end, context=Context(), attributes={"farm.tenant": tenant, "farm.jobs": jobs}, error="")
    finally:
        _whole.reset(token)


def _told(name: str, begin: float, end: float, *, error: str, **options: Any) -> Span:
    from opentelemetry.trace import Status, StatusCode

    tracer = _provider().get_tracer("inpaint-farm", farm.__version__)
    made = tracer.start_span(name, start_time=int(1e9 * begin), **options)
    if error:
        made.set_status(Status(StatusCode.ERROR, error))
    made.end(end_time=int(1e9 * end))
    return made


def _ids(name: str, generation: int) -> tuple[int, int]:
    """Of the trace, and of the span that stands for all of it."""
    trace = name if _ID.fullmatch(name) else sha256(name.encode()).hexdigest()[:32]  # a foreign hint's
    return int(trace, 16), int.from_bytes(sha256(f"{name}.{generation}".encode()).digest()[:8], "big")


def _context(name: str, generation: int) -> SpanContext:
    from opentelemetry.trace import SpanContext, TraceFlags

    trace, whole = _ids(name, generation)
    return SpanContext(trace, whole, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


@cache
def _provider() -> TracerProvider:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    except ImportError as error:
        raise Misconfigured(
            f"Traces are asked for ({_ENDPOINTS[0]}) and {error.name} is missing; pip install 'inpaint-farm[traces]'."
        ) from None

    class Ids(RandomIdGenerator):
        """The ids that a job says, for the span that stands for it; random ones for all others."""

        def generate_trace_id(self) -> int:
            whole = _whole.get()
            return whole[0] if whole else super().generate_trace_id()

        def generate_span_id(self) -> int:
            whole = _whole.get()
            return whole[1] if whole else super().generate_span_id()

    os.environ.setdefault("OTEL_SERVICE_NAME", "inpaint-farm-client")
    provider = TracerProvider(id_generator=Ids())  # whoever exits flushes it
    own = {"OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"} & os.environ.keys()
    # A collector that is away holds up whoever exits, a worker that has to go among them: 2 s instead of 10.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=None if own else 2)))
    return provider
