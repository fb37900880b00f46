"""Traces of jobs, as a collector gets them over HTTP from a client, a dispatcher and workers."""

import time

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from farm import tracing
from farm.errors import Misconfigured
from farm.ledger import JobRef
from farm.schemas import InpaintJob
from producer.client import Client
from tests.integration.quick_farm import QuickFarm
from tests.servers.scripted import Answer, scripted

_REF = JobRef("0123456789abcdef" * 2, "t", "f" * 32, "m", 0, 0, 9)


class Collector:
    """What arrives at /v1/traces: (service, span)."""

    def __init__(self):
        self.spans = []

    def answer(self, request):
        assert request.path == "/v1/traces" and request.headers["content-type"] == "application/x-protobuf"
        for resource in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            service = {one.key: one.value.string_value for one in resource.resource.attributes}["service.name"]
            self.spans += [(service, span) for scope in resource.scope_spans for span in scope.spans]
        return Answer(200, {"Content-Length": "0"})

    def of(self, trace):
        """name → its spans, of one trace; and service → names."""
        found, services = {}, {}
        for service, span in self.spans:
            if span.trace_id.hex() == trace:
                found.setdefault(span.name, []).append(span)
                services.setdefault(service, set()).add(span.name)
        return found, services


@pytest.fixture
def collector(monkeypatch):
    there = Collector()
    with scripted(there.answer) as url:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        tracing._provider.cache_clear()
        yield there
        tracing._provider().shutdown()
        tracing._provider.cache_clear()


def attributes(span):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_job_is_one_trace_from_submit_to_its_result(collector, tmp_path):
    with QuickFarm(tmp_path, seconds="0.01-0.02") as farm:
        farm.wait_ready()
        farm.pictures()
        client = Client(farm.settings)
        inputs = {"image": f"file://{farm.inputs}/photo.png", "mask": f"file://{farm.inputs}/mask.png"}
        good = client.submit(InpaintJob(**inputs, custom_id="good", num_inference_steps=2))
        bad = client.submit(InpaintJob(image=f"file://{farm.inputs}/none.png", custom_id="bad"))
        batch = client.submit_batch([InpaintJob(**inputs, custom_id="in-batch", num_inference_steps=2)])
        assert good.result(timeout=60).outputs
        farm.worker.wait_until(lambda: bad.peek() is not None, 30)
        (of_batch,) = batch.wait(timeout=60) and [result.job_id for result in batch.results()]
        tracing._provider().force_flush()
    # all processes have ended, and flushed
    spans, services = collector.of(good.id)
    stages = {"fetch", "decode", "render", "encode", "store"}
    engine = {"lora", "vae_encode", "denoise", "vae_decode"}
    assert services == {
        "inpaint-farm-client": {"submit"},
        "inpaint-farm-dispatcher": {"dispatch"},
        "inpaint-farm-worker": {"job", "queue_wait", "attempt", *stages, *engine},
    }
    (job,), (attempt,), (render,) = spans["job"], spans["attempt"], spans["render"]
    assert not job.parent_span_id
    assert {one.parent_span_id for name in ("submit", "dispatch", "queue_wait", "attempt") for one in spans[name]} == {
        job.span_id
    }
    assert {one.parent_span_id for name in stages for one in spans[name]} == {attempt.span_id}
    assert {one.parent_span_id for name in engine for one in spans[name]} == {render.span_id}
    for inside, outside in (*((spans[name][0], attempt) for name in stages), (attempt, job)):
        assert outside.start_time_unix_nano <= inside.start_time_unix_nano
        assert inside.end_time_unix_nano <= outside.end_time_unix_nano
    assert attributes(job)["farm.state"] == "succeeded" and attributes(attempt)["farm.attempt"] == 1

    spans, _ = collector.of(bad.id)
    assert (spans["job"][0].status.code, spans["job"][0].status.message) == (2, "InputNotFound")
    assert spans["submit"] and not spans.keys() & engine

    (of_all,) = collector.of(batch.id)[0]["submit"]
    assert attributes(of_all) == {"farm.tenant": "default", "farm.jobs": 1}
    (link,) = collector.of(of_batch)[0]["job"][0].links
    assert (link.trace_id.hex(), link.span_id) == (batch.id, of_all.span_id)


def test_every_process_decides_alike_which_jobs_are_traced(collector, monkeypatch):
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.5")
    traced = set()
    for process in ("client", "worker"):
        tracing._provider.cache_clear()
        monkeypatch.setenv("OTEL_SERVICE_NAME", process)
        for number in range(64):
            ref = JobRef(f"{((number + 1) * 0x9E3779B97F4A7C15) % 2**64:032x}", "t", "f" * 32, "m", 0, 0, 9)
            tracing.span("submit" if process == "client" else "attempt", ref, 1.0, 2.0)
            tracing.job(ref, 1.0, 2.0, attributes={}) if process == "worker" else None
        tracing._provider().force_flush()
    for service in ("client", "worker"):
        traced.add(frozenset(span.trace_id for of, span in collector.spans if of == service))
    assert len(traced) == 1 and 8 < len(traced.pop()) < 56


def test_a_retry_has_a_span_of_its_own_in_the_same_trace():
    first, again = tracing._ids(_REF.job_id, 0), tracing._ids(_REF.job_id, 1)
    assert first[0] == again[0] == int(_REF.job_id, 16)
    assert first[1] != again[1]


def test_without_an_endpoint_nothing_is_told_and_nothing_imported(monkeypatch):
    for name in tracing._ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tracing, "_provider", lambda: pytest.fail("traces are off"))
    tracing.begin("a")
    assert tracing.span("a", _REF, time.time(), time.time()) is None
    tracing.job(_REF, 0.0, 1.0, attributes={})
    tracing.batch("t", "f" * 32, 1, 0.0, 1.0)


def test_who_wants_traces_without_the_extra_is_told_so(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    tracing._provider.cache_clear()
    with pytest.raises(Misconfigured, match=r"pip install 'inpaint-farm\[traces\]'"):
        tracing.begin("a")
