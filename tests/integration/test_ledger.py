"""The index against real servers: Valkey, and Debian's Redis 7.0."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm import keys
from farm.errors import QueueUnavailable
from farm.ledger import JobRef, Ledger, Outcome, connect
from farm.states import JobState
from tests.servers.redis import RedisServer


@pytest.fixture(scope="module", params=["valkey", "redis-server"])
def server(request, tmp_path_factory):
    running = RedisServer(tmp_path_factory.mktemp("ledger"), binary=request.param).start()
    yield running
    running.stop()


@pytest.fixture
def client(server):
    with connect(server.url) as connection:
        connection.flushall()
        yield connection


@pytest.fixture
def ledger(client):
    return Ledger(client)


def ref(name: str = "a") -> JobRef:
    return JobRef(name, "default", "batch", "sd15-inpaint", 0, 0, 100)


def claim(ledger, name="a", lease=30.0):
    return ledger.claim(ref(name), lease_seconds=lease)


def test_a_job_is_enqueued_once(ledger):
    assert ledger.enqueue(ref(), look_again_in=30)
    assert not ledger.enqueue(ref(), look_again_in=30)
    assert ledger.state("a") is JobState.QUEUED


def test_of_many_claims_one_wins(ledger):
    ledger.enqueue(ref(), look_again_in=30)
    with ThreadPoolExecutor(8) as pool:
        outcomes = [one.outcome for one in pool.map(lambda _: claim(ledger), range(32))]
    assert outcomes.count(Outcome.CLAIMED) == 1
    assert outcomes.count(Outcome.BUSY) == 31


def test_a_claim_tells_attempt_and_wait(ledger):
    ledger.enqueue(ref(), look_again_in=30)
    time.sleep(0.05)
    first = claim(ledger)
    assert (first.attempt, first.crashes) == (1, 0)
    assert 0.04 < first.waited_seconds < 5


def test_only_the_owner_beats_and_releases(ledger):
    ledger.enqueue(ref(), look_again_in=30)
    owner = claim(ledger).owner
    assert not ledger.beat(ref(), "somebody", lease_seconds=30)
    assert not ledger.release("a", "somebody", delay_seconds=0, charged=True)
    assert ledger.beat(ref(), owner, lease_seconds=30)
    assert ledger.release("a", owner, delay_seconds=0, charged=True)
    assert not ledger.beat(ref(), owner, lease_seconds=30)
    assert ledger.state("a") is JobState.QUEUED


def test_a_lease_that_ended_is_taken_over_and_the_former_owner_refused(ledger):
    ledger.enqueue(ref(), look_again_in=30)
    first = claim(ledger, lease=0.05)
    time.sleep(0.1)
    second = claim(ledger)
    assert second.outcome is Outcome.CLAIMED
    assert (second.attempt, second.crashes) == (2, 1)
    assert not ledger.beat(ref(), first.owner, lease_seconds=30)
    assert ledger.beat(ref(), second.owner, lease_seconds=30)


def test_a_beat_keeps_the_lease(ledger):
    ledger.enqueue(ref(), look_again_in=30)
    owner = claim(ledger, lease=0.2).owner
    for _ in range(4):
        time.sleep(0.1)
        assert ledger.beat(ref(), owner, lease_seconds=0.2)
    assert claim(ledger).outcome is Outcome.BUSY


def test_what_is_due_comes_up_once(ledger):
    ledger.enqueue(ref("waiting"), look_again_in=0)
    ledger.enqueue(ref("later"), look_again_in=30)
    ledger.enqueue(ref("silent"), look_again_in=30)
    claim(ledger, "silent", lease=0.01)
    ledger.enqueue(ref("given back"), look_again_in=30)
    ledger.release("given back", claim(ledger, "given back").owner, delay_seconds=0, charged=True)
    time.sleep(0.05)
    due = ledger.take_due(limit=10, look_again_in=30)
    assert {job.job_id for job in due} == {"waiting", "silent", "given back"}
    assert due[0] == ref(due[0].job_id)
    assert ledger.take_due(limit=10, look_again_in=30) == []
    assert ledger.state("silent") is JobState.QUEUED
    assert claim(ledger, "silent").crashes == 1


def test_a_job_that_waits_long_is_looked_at_ever_more_rarely(ledger, client):
    ledger.enqueue(ref(), look_again_in=0)
    waits = []
    for _ in range(4):
        client.zadd(keys.DUE, {"a": 0})
        ledger.take_due(limit=10, look_again_in=10)
        waits.append(client.zscore(keys.DUE, "a") - time.time())
    assert [round(wait, -1) for wait in waits] == [20, 40, 80, 160]


def test_a_row_that_redis_lost_is_made_again_by_its_owners_beat(ledger, client):
    ledger.enqueue(ref(), look_again_in=30)
    owner = claim(ledger).owner
    client.flushall()
    assert ledger.beat(ref(), owner, lease_seconds=30)
    assert ledger.state("a") is JobState.RUNNING
    assert claim(ledger).outcome is Outcome.BUSY


def test_a_preemption_is_not_charged(ledger):
    ledger.enqueue(ref(), look_again_in=30)
    ledger.release("a", claim(ledger).owner, delay_seconds=0, charged=False)
    assert claim(ledger).attempt == 1


def test_a_finished_job_is_done_and_no_longer_due(ledger, client):
    ledger.enqueue(ref(), look_again_in=0)
    claim(ledger)
    ledger.finish("a", JobState.SUCCEEDED)
    assert claim(ledger).outcome is Outcome.DONE
    assert ledger.take_due(limit=10, look_again_in=30) == []
    assert client.zcard(keys.DUE) == 0


def test_a_row_that_redis_lost_is_made_again_from_the_hint(ledger, client):
    ledger.enqueue(ref(), look_again_in=30)
    client.flushall()
    assert claim(ledger).outcome is Outcome.CLAIMED
    ledger.release("a", claim(ledger).owner, delay_seconds=0, charged=True)
    assert ledger.state("a") is JobState.RUNNING


def test_a_row_is_small(ledger, client):
    fields = ("default", "e" * 32, "sd15-inpaint", 999, 10**6, 65_536)
    before = client.info("memory")["used_memory_dataset"]
    for number in range(1000):
        ledger.enqueue(JobRef(f"{number:032x}", *fields), look_again_in=30)
    assert (client.info("memory")["used_memory_dataset"] - before) / 1000 < 1024


def test_a_server_that_is_away_is_said_in_one_sentence(tmp_path):
    server = RedisServer(tmp_path).start()
    ledger = Ledger(connect(server.url))
    server.stop()
    with pytest.raises(QueueUnavailable, match="FARM_REDIS_URL"):
        ledger.ping()
    with pytest.raises(QueueUnavailable):
        ledger.enqueue(ref(), look_again_in=30)
