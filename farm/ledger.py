"""The index: which job is queued, who runs it, and when somebody must look at it next.

The object store is the truth and this can be thrown away; it only makes finding the next job quick and keeps two
workers from doing the same one. Per job there is a small hash, and one sorted set `farm:due` that is outbox, retry
timer and lease expiry in one: its score is the Redis time at which the job needs attention. Every change is one Lua
script, so it happens whole or not at all, and reads Redis' clock, so that no machine's own clock matters.

A job is held by a *lease*: the owner (a random name, new at every claim) renews it while work goes on. Whoever comes
after the lease's end may take the job; the former owner's next beat is refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, cast

import redis

from farm import keys
from farm.errors import Misconfigured, QueueUnavailable
from farm.states import JobState

_NOW = "local t = redis.call('TIME') local now = t[1] + t[2] / 1000000\n"

_ENQUEUE = (
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'attempt', 0, 'crashes', 0, 'queued_at', now, unpack(ARGV, 3))
redis.call('ZADD', KEYS[2], now + ARGV[2], ARGV[1])
return 1
"""
)

# A row that is missing (Redis lost it) is made again from the hint.
_CLAIM = (
    _NOW
    + """
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
  redis.call('HSET', KEYS[1], 'state', 'queued', 'attempt', 0, 'crashes', 0, 'queued_at', now, unpack(ARGV, 4))
elseif state == 'running' then
  local expiry = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if expiry and tonumber(expiry) > now then return {'busy', 0, 0, '0'} end
  redis.call('HINCRBY', KEYS[1], 'crashes', 1)
elseif state ~= 'queued' then
  return {'done', 0, 0, '0'}
end
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[2])
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
local attempt = redis.call('HINCRBY', KEYS[1], 'attempt', 1)
local row = redis.call('HMGET', KEYS[1], 'crashes', 'queued_at')
return {'claimed', attempt, tonumber(row[1]), tostring(now - row[2])}
"""
)

# A row that Redis lost is made again by whoever holds the job.
_BEAT = (
    _NOW
    + """
local row = redis.call('HMGET', KEYS[1], 'state', 'owner')
if not row[1] then
  redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[2], 'attempt', 1, 'crashes', 0, 'queued_at', now,
    unpack(ARGV, 4))
elseif row[1] ~= 'running' or row[2] ~= ARGV[2] then return 0 end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return 1
"""
)

_RELEASE = (
    _NOW
    + """
local row = redis.call('HMGET', KEYS[1], 'state', 'owner')
if row[1] ~= 'running' or row[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'state', 'queued', 'owner', '')
redis.call('HDEL', KEYS[1], 'looks')
if ARGV[4] == '0' then redis.call('HINCRBY', KEYS[1], 'attempt', -1) end
redis.call('ZADD', KEYS[2], now + ARGV[3], ARGV[1])
return 1
"""
)

_FINISH = """
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'owner', '')
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""

# What is due: leases that ended go back to the queue; queued jobs are looked at again later in any case, and each time
# twice as late, so that a long queue gathers few needless hints.
_TAKE_DUE = (
    _NOW
    + """
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])) do
  local row = ARGV[3] .. id
  local state = redis.call('HGET', row, 'state')
  if state == 'running' then
    redis.call('HSET', row, 'state', 'queued', 'owner', '')
    redis.call('HINCRBY', row, 'crashes', 1)
    redis.call('HDEL', row, 'looks')
    redis.call('ZADD', KEYS[1], now + ARGV[2], id)
    taken[#taken + 1] = {id, redis.call('HGETALL', row)}
  elseif state == 'queued' then
    local looks = redis.call('HINCRBY', row, 'looks', 1)
    redis.call('ZADD', KEYS[1], now + ARGV[2] * 2 ^ math.min(looks, 10), id)
    taken[#taken + 1] = {id, redis.call('HGETALL', row)}
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return taken
"""
)

_KEEP_ROW_SECONDS = 7 * 24 * 3600  # a finished row only answers `status` without a read of the store


@dataclass(frozen=True)
class JobRef:
    """Where a job's spec lies: all that a hint carries and a row needs.

    No address is in it: the worker makes it from its own store, so that a hint cannot point anywhere else; and every
    value stays short enough for Redis' compact encoding of small hashes.
    """

    job_id: str
    tenant: str
    batch_id: str
    model: str
    shard: int
    offset: int  # of the job's line in the shard, bytes
    length: int


class Outcome(StrEnum):
    CLAIMED = "claimed"
    BUSY = "busy"  # another worker holds a living lease
    DONE = "done"


@dataclass(frozen=True)
class Claim:
    """A job in hand. `owner` is the fence: nobody else's beat or release can touch it."""

    outcome: Outcome
    owner: str = ""
    attempt: int = 0  # 1 for the first
    crashes: int = 0  # leases of this job that ended with their worker silent
    waited_seconds: float = 0.0  # since it was submitted


def connect(url: str) -> redis.Redis:
    """A client that notices a dead peer within seconds. Raises Misconfigured for an address that is none."""
    try:
        return redis.Redis.from_url(
            url, socket_timeout=10, socket_connect_timeout=5, health_check_interval=10, decode_responses=True
        )
    except ValueError:  # its message may hold a part of the password
        raise Misconfigured("FARM_REDIS_URL cannot be read; write redis://host:6379/0.") from None


@contextmanager
def _mapped() -> Iterator[None]:
    try:
        yield
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise QueueUnavailable(f"Redis does not answer ({type(error).__name__}); check FARM_REDIS_URL.") from error
    except redis.ResponseError as error:
        raise QueueUnavailable(f"Redis refused: {str(error)[:120]}; try later.") from error


class Ledger:
    """All changes of the index. Raises QueueUnavailable (retryable) when Redis does not answer."""

    def __init__(self, client: redis.Redis):
        self._redis = client
        self._scripts = {
            name: client.register_script(text)
            for name, text in (
                ("enqueue", _ENQUEUE), ("claim", _CLAIM), ("beat", _BEAT), ("release", _RELEASE),
                ("finish", _FINISH), ("take_due", _TAKE_DUE),
            )
        }  # fmt: skip

    def _run(self, script: str, job_id: str, *args: Any) -> Any:
        with _mapped():
            return self._scripts[script](keys=[keys.job_row(job_id), keys.DUE], args=[job_id, *args])

    def ping(self) -> None:
        with _mapped():
            self._redis.ping()

    def enqueue(self, ref: JobRef, *, look_again_in: float) -> bool:
        """Make the row of an accepted job; False if it has one. It is looked at again after `look_again_in` seconds."""
        return bool(self._run("enqueue", ref.job_id, look_again_in, *_fields(ref)))

    def claim(self, ref: JobRef, *, lease_seconds: float) -> Claim:
        owner = secrets.token_hex(8)
        outcome, attempt, crashes, waited = self._run("claim", ref.job_id, owner, lease_seconds, *_fields(ref))
        return Claim(Outcome(outcome), owner, int(attempt), int(crashes), float(waited))

    def beat(self, ref: JobRef, owner: str, *, lease_seconds: float) -> bool:
        """Renew the lease; False means the job is no longer this owner's, who must stop."""
        return bool(self._run("beat", ref.job_id, owner, lease_seconds, *_fields(ref)))

    def release(self, job_id: str, owner: str, *, delay_seconds: float, charged: bool) -> bool:
        """Give the job back, due again in `delay_seconds`; a preemption is not `charged` as an attempt."""
        return bool(self._run("release", job_id, owner, delay_seconds, int(charged)))

    def finish(self, job_id: str, state: JobState) -> None:
        """Note what the result object says."""
        self._run("finish", job_id, state.value, _KEEP_ROW_SECONDS)

    def state(self, job_id: str) -> JobState | None:
        with _mapped():
            value = cast("str | None", self._redis.hget(keys.job_row(job_id), "state"))
        return JobState(value) if value else None

    def take_due(self, *, limit: int, look_again_in: float) -> list[JobRef]:
        """Jobs that need a hint now. Those whose lease ended are queued again by this very call.

        A job is due again after `look_again_in` seconds, and then after twice as long each time, up to 1,024 times.
        """
        with _mapped():
            rows = self._scripts["take_due"](keys=[keys.DUE], args=[limit, look_again_in, keys.job_row("")])
        return [_ref(job_id, flat) for job_id, flat in rows]


def _fields(ref: JobRef) -> list[Any]:
    return [part for name, value in asdict(ref).items() if name != "job_id" for part in (name, value)]


def _ref(job_id: str, flat: list[str]) -> JobRef:
    row = dict(zip(flat[::2], flat[1::2], strict=True))
    return JobRef(
        job_id=job_id,
        tenant=row["tenant"],
        batch_id=row["batch_id"],
        model=row["model"],
        shard=int(row["shard"]),
        offset=int(row["offset"]),
        length=int(row["length"]),
    )
