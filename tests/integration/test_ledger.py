"""The index against real servers: Valkey, and Debian's Redis 7.0."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm import keys
from farm.errors import QueueUnavailable, QuotaExceeded
from farm.ledger import Batches, Beat, JobRef, Ledger, Outcome, Window, connect
from farm.schemas import BatchFooter
from farm.states import JobState
from tests.servers.redis import RedisServer

MODEL = "sd15-inpaint"


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


@pytest.fixture
def window(client):
    return Window(client)


@pytest.fixture
def batches(client):
    return Batches(client)


def ref(name="a", *, tenant="default", batch="batch", shard=keys.SINGLE, priority=50):
    return JobRef(name, tenant, batch, MODEL, shard, 0, 100, priority=priority)


def claim(ledger, name="a", lease=30.0, **fields):
    return ledger.claim([ref(name, **fields)], lease_seconds=lease)[0]


def beat(ledger, owner, name="a", lease=30.0, **fields):
    return ledger.beat([ref(name, **fields)], owner, lease_seconds=lease)[0]


def take(window, count=10, quantum=100, look=30.0):
    refs = window.take_ready(MODEL, window=count, limit=count, quantum=quantum, look_again_in=look)
    return [one.job_id for one in refs]


def due(window):
    return window.take_due(limit=100, look_again_in=30)


# One job


def test_a_job_is_enqueued_once(ledger):
    assert ledger.enqueue([ref()]) == 1
    assert ledger.enqueue([ref()]) == 0
    assert ledger.state("a") is JobState.QUEUED


def test_of_many_claims_one_wins(ledger):
    ledger.enqueue([ref()])
    with ThreadPoolExecutor(8) as pool:
        outcomes = [one.outcome for one in pool.map(lambda _: claim(ledger), range(32))]
    assert outcomes.count(Outcome.CLAIMED) == 1
    assert outcomes.count(Outcome.BUSY) == 31


def test_of_several_jobs_the_free_ones_are_claimed_by_one_owner(ledger):
    ledger.enqueue([ref("a"), ref("b"), ref("c")])
    claim(ledger, "b")
    claims = ledger.claim([ref("a"), ref("b"), ref("c")], lease_seconds=30)
    assert [one.outcome for one in claims] == [Outcome.CLAIMED, Outcome.BUSY, Outcome.CLAIMED]
    assert claims[0].owner == claims[2].owner


def test_a_claim_tells_attempt_and_wait(ledger):
    ledger.enqueue([ref()])
    time.sleep(0.05)
    first = claim(ledger)
    assert (first.attempt, first.crashes, first.saved) == (1, 0, False)
    assert 0.04 < first.waited_seconds < 5


def test_only_the_owner_beats_and_releases(ledger):
    ledger.enqueue([ref()])
    owner = claim(ledger).owner
    assert beat(ledger, "somebody") is Beat.LOST
    assert not ledger.release(ref(), "somebody", delay_seconds=0)
    assert beat(ledger, owner) is Beat.HELD
    assert ledger.release(ref(), owner, delay_seconds=0)
    assert beat(ledger, owner) is Beat.LOST
    assert ledger.state("a") is JobState.QUEUED


def test_a_lease_that_ended_is_taken_over_and_the_former_owner_refused(ledger):
    ledger.enqueue([ref()])
    first = claim(ledger, lease=0.05)
    time.sleep(0.1)
    second = claim(ledger)
    assert second.outcome is Outcome.CLAIMED
    assert (second.attempt, second.crashes) == (2, 1)
    assert beat(ledger, first.owner) is Beat.LOST
    assert beat(ledger, second.owner) is Beat.HELD


def test_a_beat_keeps_the_lease(ledger):
    ledger.enqueue([ref()])
    owner = claim(ledger, lease=0.2).owner
    for _ in range(4):
        time.sleep(0.1)
        assert beat(ledger, owner, lease=0.2) is Beat.HELD
    assert claim(ledger).outcome is Outcome.BUSY


def test_a_preemption_is_not_charged_and_says_that_its_state_is_saved(ledger):
    ledger.enqueue([ref()])
    ledger.release(ref(), claim(ledger).owner, delay_seconds=0, charged=False, saved=True)
    again = claim(ledger)
    assert (again.attempt, again.saved) == (1, True)


def test_a_row_that_redis_lost_is_made_again_by_its_owners_beat(ledger, client):
    ledger.enqueue([ref()])
    owner = claim(ledger).owner
    client.flushall()
    assert beat(ledger, owner) is Beat.HELD
    assert ledger.state("a") is JobState.RUNNING
    assert claim(ledger).outcome is Outcome.BUSY


def test_a_row_that_redis_lost_is_made_again_from_the_hint(ledger, client):
    ledger.enqueue([ref()])
    client.flushall()
    assert claim(ledger).outcome is Outcome.CLAIMED


def test_nothing_is_left_of_a_finished_job(ledger, client):
    ledger.enqueue([ref()])
    owner = claim(ledger).owner
    ledger.finish([(ref(), JobState.SUCCEEDED, 1.5)], owner=owner)
    assert ledger.state("a") is None
    assert set(client.keys("farm:*")) <= {
        keys.WAKE, keys.SEQUENCE, keys.FINISHED + MODEL, keys.PACE + MODEL, keys.READY, keys.TENANTS + MODEL
    }  # fmt: skip


def test_a_job_that_another_ends_refuses_its_owners_next_beat_once_and_for_all(ledger):
    ledger.enqueue([ref()])
    owner = claim(ledger).owner
    ledger.finish([(ref(), JobState.CANCELED, 0)])
    assert beat(ledger, owner) is Beat.LOST
    assert claim(ledger).outcome is Outcome.BUSY
    assert ledger.state("a") is None


# The window


def test_ready_jobs_come_by_priority_then_by_age(ledger, window):
    ledger.enqueue([ref("old"), ref("new"), ref("urgent", priority=90), ref("whenever", priority=10)])
    assert take(window) == ["urgent", "old", "new", "whenever"]


def test_what_is_hinted_and_not_claimed_fills_the_window(ledger, window):
    ledger.enqueue([ref(str(n)) for n in range(5)])
    assert take(window, 3) == ["0", "1", "2"]
    assert take(window, 3) == []
    claim(ledger, "1")
    assert take(window, 3) == ["3"]


def test_tenants_take_turns_by_their_weight(ledger, window):
    window.set_weights({"big": 3.0})
    for tenant in ("big", "small"):
        ledger.enqueue([ref(f"{tenant}-{n}", tenant=tenant) for n in range(40)])
    first = take(window, 40, quantum=2)
    assert sum(name.startswith("big") for name in first) == 30


def test_a_tenant_that_comes_later_does_not_make_up_for_lost_time(ledger, window):
    ledger.enqueue([ref(f"early-{n}", tenant="early") for n in range(60)])
    take(window, 20, quantum=2)
    ledger.enqueue([ref(f"late-{n}", tenant="late") for n in range(60)])
    then = take(window, 60, quantum=2)
    assert 18 <= sum(name.startswith("late") for name in then) <= 22


def test_a_hint_that_nobody_answers_is_given_again_ever_more_rarely(ledger, window, client):
    ledger.enqueue([ref()])
    waits = []
    for _ in range(4):
        assert take(window, look=10) == ["a"]
        waits.append(client.zscore(keys.DUE, "a") - time.time())
        client.zadd(keys.DUE, {"a": 0})
        assert due(window).jobs == 1
    assert [round(wait, -1) for wait in waits] == [10, 20, 40, 80]


def test_leases_that_end_and_retries_that_are_due_become_ready(ledger, window):
    ledger.enqueue([ref("silent"), ref("again"), ref("alive")])
    claim(ledger, "silent", lease=0.01)
    ledger.release(ref("again"), claim(ledger, "again").owner, delay_seconds=0.01)
    claim(ledger, "alive")
    time.sleep(0.05)
    assert due(window).jobs == 2
    assert set(take(window)) == {"silent", "again"}
    assert claim(ledger, "silent").crashes == 1
    assert claim(ledger, "again").crashes == 0


def test_jobs_of_a_hint_that_nobody_will_claim_are_ready_at_once(ledger, window):
    ledger.enqueue([ref("a"), ref("b")])
    take(window)
    claim(ledger, "b")
    ledger.give_back([ref("a"), ref("b")])
    assert take(window) == ["a"]


def test_the_dispatcher_sleeps_until_it_is_woken(ledger, window):
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        sleeping = pool.submit(window.wait, 3.0)
        time.sleep(0.1)
        ledger.enqueue([ref()])
        sleeping.result()
    assert time.monotonic() - began < 1


def test_depths_count_jobs_where_they_are(ledger, window):
    ledger.enqueue([ref(str(n)) for n in range(6)])
    take(window, 3)
    claim(ledger, "0")
    time.sleep(0.02)
    depths = window.depths(MODEL)
    assert (depths.ready, depths.hinted, depths.running) == (3, 2, 1)
    assert 0.01 < depths.oldest < 5


def test_of_two_dispatchers_one_leads(window):
    assert window.lead("first", seconds=0.2)
    assert not window.lead("second", seconds=0.2)
    assert window.lead("first", seconds=0.05)
    time.sleep(0.1)
    assert window.lead("second", seconds=0.2)


# Batches

FOOTER = BatchFooter(tenant="default", batch_id="batch", jobs=4, shards=2, model=MODEL)
SHARDS = [[ref(f"{shard}-{n}", shard=shard) for n in range(2)] for shard in range(2)]


def opened(batches):
    batches.announce("default", "batch", look_again_in=30)
    assert batches.open(FOOTER, look_again_in=30)
    for number, refs in enumerate(SHARDS):
        assert batches.index_shard("default", "batch", number, refs)


def test_an_announced_batch_is_looked_at_when_no_word_comes(batches, window):
    batches.announce("default", "batch", look_again_in=0.01)
    time.sleep(0.03)
    assert due(window).batches == [("default", "batch")]
    assert batches.record("default", "batch").state == "accepting"


def test_a_single_job_that_arrives_needs_no_look(batches, ledger, window, client):
    batches.announce("default", "batch", look_again_in=0.01)
    ledger.enqueue([ref()])
    time.sleep(0.03)
    assert due(window).batches == []
    assert not client.exists(keys.batch_row("batch"))


def test_a_shard_is_indexed_once(batches, ledger):
    opened(batches)
    assert not batches.index_shard("default", "batch", 1, SHARDS[1])
    assert list(batches.unindexed()) == []
    record = batches.record("default", "batch")
    assert (record.next_shard, record.live, record.jobs) == (2, 4, 4)


def test_a_batch_counts_how_its_jobs_end_and_is_due_at_its_end(batches, ledger, window):
    opened(batches)
    for number, one in enumerate(ref for refs in SHARDS for ref in refs):
        assert due(window).batches == []
        owner = ledger.claim([one], lease_seconds=30)[0].owner
        state = JobState.SUCCEEDED if number else JobState.FAILED
        ledger.finish([(one, state, 0.5)], owner=owner)
    assert due(window).batches == [("default", "batch")]
    record = batches.record("default", "batch")
    assert record.counts == {"succeeded": 3, "failed": 1}
    batches.close("default", "batch")
    assert batches.record("default", "batch") is None


def test_a_late_hint_of_an_ended_job_is_not_counted_twice(batches, ledger):
    opened(batches)
    first = SHARDS[0][0]
    for _ in range(2):
        owner = ledger.claim([first], lease_seconds=30)[0].owner
        ledger.finish([(first, JobState.SUCCEEDED, 0.5)], owner=owner)
    assert batches.record("default", "batch").counts == {"succeeded": 1}


def test_a_paused_batch_is_not_hinted_until_it_goes_on(batches, ledger, window):
    opened(batches)
    batches.pause("default", "batch", paused=True)
    ledger.enqueue([ref("other", batch="single")])
    assert take(window) == ["other"]
    assert batches.live() == {("default", MODEL): 1}
    batches.pause("default", "batch", paused=False)
    assert set(take(window)) == {"0-0", "0-1", "1-0", "1-1"}
    assert batches.live() == {("default", MODEL): 5}


def test_a_held_job_that_ends_is_not_taken_from_the_live_ones_again(batches, ledger, window):
    opened(batches)
    ledger.enqueue([ref("other", batch="single")])
    batches.pause("default", "batch", paused=True)
    take(window)
    ledger.finish([(SHARDS[0][0], JobState.CANCELED, 0)])
    assert batches.live() == {("default", MODEL): 1}


def test_of_a_canceled_batch_every_claim_and_beat_says_so(batches, ledger):
    opened(batches)
    running = SHARDS[0][0]
    owner = ledger.claim([running], lease_seconds=30)[0].owner
    assert batches.cancel("batch")
    assert ledger.beat([running], owner, lease_seconds=30) == [Beat.CANCELED]
    assert ledger.claim([SHARDS[1][0]], lease_seconds=30)[0].outcome is Outcome.CANCELED


def test_a_tenant_over_its_quota_is_refused_until_jobs_end(batches, ledger):
    opened(batches)
    with pytest.raises(QuotaExceeded, match="try later"):
        batches.announce("default", "more", look_again_in=30, quota=4)
    batches.announce("another", "more", look_again_in=30, quota=4)
    owner = ledger.claim([SHARDS[0][0]], lease_seconds=30)[0].owner
    ledger.finish([(SHARDS[0][0], JobState.SUCCEEDED, 0.5)], owner=owner)
    batches.announce("default", "more", look_again_in=30, quota=4)


def test_a_batch_that_is_opened_again_counts_only_what_is_left(batches, ledger, window):
    batches.open(FOOTER, next_shard=2, look_again_in=30, counts={"succeeded": 3})
    ledger.enqueue([SHARDS[1][1]], counted=False)
    with pytest.raises(QuotaExceeded):
        batches.announce("default", "more", look_again_in=30, quota=1)
    owner = ledger.claim([SHARDS[1][1]], lease_seconds=30)[0].owner
    ledger.finish([(SHARDS[1][1], JobState.SUCCEEDED, 0.5)], owner=owner)
    assert batches.record("default", "batch").counts == {"succeeded": 4}
    assert due(window).batches == [("default", "batch")]


def test_what_has_ended_is_counted_with_its_shard_and_has_no_row(batches, ledger, window):
    batches.reopen(FOOTER, look_again_in=30, retries=0)
    assert batches.record("default", "batch").reopened
    batches.index_shard("default", "batch", 0, [], ended={"succeeded": 1, "failed": 1})
    assert not batches.index_shard("default", "batch", 0, [], ended={"succeeded": 2})  # once
    batches.index_shard("default", "batch", 1, SHARDS[1][1:], ended={"succeeded": 1})
    assert take(window) == ["1-1"]
    with pytest.raises(QuotaExceeded):
        batches.announce("default", "more", look_again_in=30, quota=1)
    owner = ledger.claim([SHARDS[1][1]], lease_seconds=30)[0].owner
    ledger.finish([(SHARDS[1][1], JobState.SUCCEEDED, 0.5)], owner=owner)
    assert batches.record("default", "batch").counts == {"succeeded": 3, "failed": 1}
    assert due(window).batches == [("default", "batch")]
    batches.announce("default", "more", look_again_in=30, quota=1)


def test_a_batch_that_had_ended_whole_is_due_at_once(batches, window):
    batches.reopen(FOOTER, look_again_in=30, retries=0)
    for shard in range(2):
        batches.index_shard("default", "batch", shard, [], ended={"succeeded": 2})
    assert due(window).batches == [("default", "batch")]


# All of it


def test_a_row_is_small(ledger, client):
    fields = ("default", "e" * 32, MODEL, 999, 10**6, 65_536)
    ledger.enqueue([JobRef("f" * 32, *fields)])
    before = client.info("memory")["used_memory_dataset"]
    ledger.enqueue([JobRef(f"{number:032x}", *fields) for number in range(2000)])
    assert (client.info("memory")["used_memory_dataset"] - before) / 2000 < 1024


def test_a_server_that_is_away_is_said_in_one_sentence(tmp_path):
    server = RedisServer(tmp_path).start()
    ledger = Ledger(connect(server.url))
    server.stop()
    with pytest.raises(QueueUnavailable, match="FARM_REDIS_URL"):
        ledger.ping()
    with pytest.raises(QueueUnavailable):
        ledger.enqueue([ref()])
