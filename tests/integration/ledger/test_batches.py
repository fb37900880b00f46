"""Whole batches in the index: announced, indexed by the shard, paused, canceled, counted, closed."""

import time
from itertools import chain

import pytest

from farm import keys
from farm.errors import QuotaExceeded
from farm.ledger import Beat, Outcome
from farm.schemas import BatchFooter
from farm.states import JobState
from tests.integration.ledger.words import MODEL, due, ref, take

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
    for number, one in enumerate(chain.from_iterable(SHARDS)):
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


def test_what_was_hinted_before_a_pause_does_not_begin_until_the_batch_goes_on(batches, ledger, window):
    opened(batches)
    assert set(take(window)) == {"0-0", "0-1", "1-0", "1-1"}
    running, *hinted = (one for shard in SHARDS for one in shard)
    owner = ledger.claim([running], lease_seconds=30)[0].owner
    batches.pause("default", "batch", paused=True)
    for _ in range(2):  # a hint may come twice
        assert {claim.outcome for claim in ledger.claim(hinted, lease_seconds=30)} == {Outcome.BUSY}
    assert ledger.beat([running], owner, lease_seconds=30) == [Beat.HELD]
    assert batches.live() == {("default", MODEL): 1}
    assert not take(window)
    batches.pause("default", "batch", paused=False)
    assert set(take(window)) == {one.job_id for one in hinted}
    assert {claim.outcome for claim in ledger.claim(hinted, lease_seconds=30)} == {Outcome.CLAIMED}


def test_of_a_batch_that_is_paused_and_canceled_claims_say_that_it_is_canceled(batches, ledger, window):
    opened(batches)
    take(window)
    batches.pause("default", "batch", paused=True)
    assert batches.cancel("batch")
    assert ledger.claim([SHARDS[0][0]], lease_seconds=30)[0].outcome is Outcome.CANCELED


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
