"""One fault of Redis each: cut off, killed, emptied, full, read-only, half-open, slow."""

import itertools
import time

import pytest
import redis

from farm.errors import FarmFull, QueueUnavailable
from farm.states import JobState
from producer.client import Client
from tests.conftest import new_bucket
from tests.faults.desk import desk_with
from tests.faults.proxy import Link
from tests.servers.redis import RedisServer, server_binary


@pytest.fixture(scope="module")
def desk(tmp_path_factory, s3_server):
    with desk_with(tmp_path_factory.mktemp("redis"), s3_server, new_bucket(s3_server)) as there:
        yield there


@pytest.fixture(autouse=True)
def whole_again(desk):
    yield
    desk.fleet.redis_proxy.heal()


def succeeded(desk, handles, seconds=60):
    results = [desk.ended(handle, seconds) for handle in handles]
    assert {result.status for result in results} == {JobState.SUCCEEDED}
    assert all(len(desk.results_of(handle)) == 1 for handle in handles)
    return results


def test_connections_cut_in_mid_job_the_job_is_done_once_in_its_first_attempt(desk):
    handle = desk.submit("cut", 2.0)
    desk.running(handle)
    assert desk.fleet.redis_proxy.cut() > 0
    (result,) = succeeded(desk, [handle])
    assert result.attempt == 1  # Celery hands the hint out again at once; whoever gets it finds the job busy
    assert len(desk.claims(handle)) == 1


def test_redis_killed_in_the_middle_of_many_jobs_loses_none(desk):
    handles = [desk.submit(f"killed-{number}", 0.2) for number in range(10)]
    desk.fleet.redis.kill()
    time.sleep(1.5)
    desk.fleet.redis.start()
    succeeded(desk, handles)
    desk.at_rest()


def test_after_flushall_the_index_is_made_again_from_the_store(desk):
    desk.ready()
    handles = [desk.submit(f"flushed-{number}") for number in range(8)]
    batch = desk.client.submit_batch([desk.job(f"flushed-in-batch-{n}") for n in range(8)], tenant="anna")
    with desk.fleet.redis.client() as client:
        client.flushall()
    succeeded(desk, handles)
    desk.wait(lambda: len(list(batch.results())) == 8, 60, "end of the batch")
    desk.at_rest(60)


def test_a_volume_that_is_lost_with_its_redis(desk):
    handles = [desk.submit(f"volume-{number}", 0.2) for number in range(6)]
    desk.fleet.redis.kill()
    for path in sorted(desk.fleet.redis.folder.rglob("*"), reverse=True):
        if path.name != "server.log":
            path.rmdir() if path.is_dir() else path.unlink()
    desk.fleet.redis.start()
    succeeded(desk, handles)


def test_replies_that_are_dropped_lose_nothing(desk):
    handles = [desk.submit(f"half-open-{number}", 0.3) for number in range(6)]
    desk.fleet.redis_proxy.down = Link(swallow=True)
    time.sleep(1.0)
    desk.fleet.redis_proxy.heal()  # what was half-open stays so until its owner notices
    succeeded(desk, handles, 90)


def test_half_a_second_of_latency_and_cut_connections_are_slow_and_right(desk):
    desk.ready()
    proxy = desk.fleet.redis_proxy
    proxy.up, proxy.down = Link(delay=0.25), Link(delay=0.25)
    handles = [desk.submit(f"slow-{number}") for number in range(2)]
    looks = itertools.count()

    def all_ended():
        if next(looks) in range(0, 200, 20):  # once a second for ten
            proxy.cut(0.05)
        return all(handle.peek() is not None for handle in handles)

    desk.wait(all_ended, 90, "end of jobs over a slow link")
    succeeded(desk, handles)


def refusing(kind, client):
    """Make Redis refuse writes as it does in these cases; how to mend it."""
    if kind == "read-only":
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        return lambda: client.execute_command("REPLICAOF", "NO", "ONE")
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


@pytest.mark.parametrize(("kind", "error"), [("read-only", QueueUnavailable), ("out-of-memory", FarmFull)])
def test_redis_that_takes_no_writes_submit_says_try_later_and_keeps_what_was_accepted(desk, kind, error):
    desk.ready()
    handles = [desk.submit(f"{kind}-{number}", 1.0) for number in range(6)]
    desk.running(handles[0])
    with desk.fleet.redis.client() as client:
        time.sleep(1.1)  # the client asks for Redis' memory once a second
        mend = refusing(kind, client)
        with pytest.raises(error) as refused:
            desk.submit(f"{kind}-refused")
        assert refused.value.retryable
        assert "try later" in str(refused.value)
        time.sleep(1.0)
        mend()
    succeeded(desk, handles)
    assert desk.ended(desk.submit(f"{kind}-after")).status is JobState.SUCCEEDED


def test_a_disk_that_is_full_under_redis_submit_says_try_later(desk, tmp_path):
    # A wrapper caps the size of any file it writes; Redis then refuses writes, as on a disk that is full.
    capped = tmp_path / "capped-redis"
    capped.write_text(f"#!/bin/sh\ntrap '' XFSZ\nulimit -f 64\nexec {server_binary()} \"$@\"\n")
    capped.chmod(0o755)
    with RedisServer(tmp_path / "data", binary=str(capped)) as server, server.client() as client:
        with pytest.raises(redis.RedisError):
            for number in range(1000):
                client.set(f"filler-{number}", b"x" * 1000)
                time.sleep(0.001)
        there = Client(desk.settings.model_copy(update={"redis_url": server.url}), store=desk.fleet.store)
        with pytest.raises(QueueUnavailable, match="try later"):
            there.submit(desk.job("disk-full"))
