"""What the dispatcher that leads tells of the queue: how many jobs are where, and for which workers are added."""

import pytest

from farm import keys, metrics
from farm.dispatcher.gauges import Gauges
from farm.dispatcher.lead import Lead
from farm.ledger import Batches, JobRef, Ledger, Window, connect
from farm.schemas import BatchFooter

MODEL = "sd15-inpaint"


@pytest.fixture
def client(redis_url):
    with connect(redis_url) as connection:
        connection.flushall()
        yield connection


def gauges(client, *, models=(MODEL,), growth_priority=0):
    window = Window(client)
    return Gauges(Lead(window), window, Batches(client), models, growth_priority=growth_priority)


def told(gauge):
    return {tuple(sample.labels.values()): sample.value for sample in gauge.collect()[0].samples}


def ref(name, priority, *, model=MODEL):
    return JobRef(name, "t", name, model, keys.SINGLE, 0, 9, priority=priority)


def test_of_two_dispatchers_one_exports(client):
    Ledger(client).enqueue([ref(str(n), 50) for n in range(5)])
    leader, other = gauges(client), gauges(client)
    leader.refresh()
    assert told(metrics.queue_jobs)[MODEL, "ready"] == 5
    assert told(metrics.backlog_gpu_seconds) == {(MODEL, "true"): 5.0, (MODEL, "false"): 0.0}
    other.refresh()
    assert told(metrics.queue_jobs) == told(metrics.backlog_gpu_seconds) == {}


def test_jobs_of_low_priority_are_told_apart_wherever_they_are(client):
    """Ten in each place, a few of them of a priority for which no workers are added."""
    ledger, window, batches = Ledger(client), Window(client), Batches(client)
    low = {"running": 1, "hinted": 2, "ready": 3}
    for place, few in low.items():
        some = [ref(f"{place}-{n}", 9 if n < few else 10) for n in range(10)]
        ledger.enqueue(some)
        if place != "ready":
            window.take_ready(MODEL, window=20, limit=20, quantum=20, look_again_in=60)
        if place == "running":
            ledger.claim(some, lease_seconds=60)
    for name, priority in (("urgent", 10), ("whenever", 9)):
        footer = BatchFooter(tenant="t", batch_id=name, jobs=10, shards=1, model=MODEL, priority=priority)
        batches.open(footer, look_again_in=60)
    gauges(client, growth_priority=10).refresh()
    counts = told(metrics.queue_jobs)
    assert {place: counts[MODEL, place] for place in (*low, "unindexed")} == {
        "running": 10, "hinted": 10, "ready": 10, "unindexed": 20,
    }  # fmt: skip
    assert told(metrics.backlog_gpu_seconds) == {(MODEL, "true"): 34.0, (MODEL, "false"): 16.0}


def test_a_model_whose_jobs_all_run_is_known_to_a_dispatcher_that_starts(client):
    ledger = Ledger(client)
    job = ref("a", 50, model="other")
    ledger.enqueue([job])
    Window(client).take_ready("other", window=9, limit=9, quantum=9, look_again_in=60)
    ledger.claim([job], lease_seconds=60)
    gauges(client).refresh()
    assert told(metrics.queue_jobs)["other", "running"] == 1
