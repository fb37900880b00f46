"""What the dispatcher takes from the index: the window of hints, what is due, who leads, how deep the queue is."""

import time
from concurrent.futures import ThreadPoolExecutor

from farm import keys
from farm.ledger import Ledger
from farm.states import JobState
from tests.integration.ledger.words import MODEL, claim, due, ref, take


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


def test_the_dispatcher_sleeps_until_it_is_woken(ledger, window, client):
    with ThreadPoolExecutor(1) as pool:
        sleeping = pool.submit(window.wait, 5.0)
        while not client.info("clients")["blocked_clients"]:
            assert not sleeping.done()
        ledger.enqueue([ref()])
        sleeping.result()
    assert not client.llen(keys.WAKE)  # the word that it was woken by, which it took


def test_depths_count_jobs_where_they_are(ledger, window, client):
    ledger.enqueue([ref(str(n)) for n in range(6)])
    take(window, 3)
    claim(ledger, "0")
    client.hset(keys.job_row("3"), "queued_at", client.time()[0] - 60)
    depths = window.depths(MODEL)
    assert (depths.ready, depths.hinted, depths.running) == (3, 2, 1)
    assert depths.oldest >= 60


def test_depths_tell_how_many_are_of_a_priority_or_more_urgent(ledger, window):
    ledger.enqueue([ref(str(n), priority=10 * n) for n in range(10)])
    assert [window.depths(MODEL, priority=least).urgent for least in (0, 1, 50, 90, 91)] == [10, 9, 5, 1, 0]
    assert take(window, 4) == ["9", "8", "7", "6"]
    claim(ledger, "9"), claim(ledger, "8")
    assert [window.depths(MODEL, priority=least).urgent for least in (0, 1, 50, 80, 90, 91)] == [10, 9, 5, 2, 1, 0]


def test_whoever_asks_is_told_which_workers_hold_jobs(client, window):
    ledgers = {name: Ledger(client, worker=name) for name in ("pod-a", "pod/b", "idle")}
    ledgers["idle"].enqueue([ref(str(n)) for n in range(4)])
    for number, worker in enumerate(("pod-a", "pod-a", "pod/b")):
        claim(ledgers[worker], str(number))
    assert window.holders(MODEL) == {"pod-a": 2, "pod/b": 1}
    ledgers["idle"].finish([(ref("2"), JobState.SUCCEEDED, 1.0)])
    assert window.holders(MODEL) == {"pod-a": 2}


def test_of_two_dispatchers_one_leads(window, client):
    assert window.lead("first", seconds=60)
    assert not window.lead("second", seconds=60)
    assert window.lead("first", seconds=600)
    assert client.ttl(keys.LEADER) > 60
    client.pexpire(keys.LEADER, 1)  # it falls silent
    time.sleep(0.05)
    assert window.lead("second", seconds=60)
    assert not window.lead("first", seconds=60)
