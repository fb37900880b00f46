"""One job's way through the index."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from farm import keys
from farm.errors import QueueUnavailable
from farm.ledger import Beat, JobRef, Ledger, Outcome, connect
from farm.states import JobState
from tests.integration.ledger.words import MODEL, beat, claim, ref
from tests.servers.redis import RedisServer


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


def test_a_claim_tells_attempt_and_wait(ledger, client):
    ledger.enqueue([ref()])
    client.hset(keys.job_row("a"), "queued_at", client.time()[0] - 60)
    first = claim(ledger)
    assert (first.attempt, first.crashes, first.saved) == (1, 0, False)
    assert first.waited_seconds >= 60


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


def test_a_beat_keeps_the_lease(ledger, client):
    ledger.enqueue([ref()])
    owner = claim(ledger, lease=10).owner
    ends = client.zscore(keys.DUE, "a")
    assert beat(ledger, owner, lease=100) is Beat.HELD
    assert client.zscore(keys.DUE, "a") > ends + 80
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
