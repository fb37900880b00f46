"""What a run left behind, read as a history: producers' and workers' notes, the store, and what is left in Redis."""

from __future__ import annotations

import base64
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import redis

from farm import keys
from farm.schemas import JobResult
from farm.storage import ObjectStore
from tests.faults.history import Accepted, Claimed, Ended, History, Picture, Rolled, Spec, Won

_MOST = 64 << 20

# What may stay in an idle Redis: Celery's table of queues, and what the farm counts or remembers for good, or until it
# expires (a walk that a killed dispatcher began).
_NAMES = (keys.WEIGHTS, keys.SEQUENCE, keys.WAKE, keys.EPOCH, keys.COLLECTED, keys.LEADER)
_PREFIXES = ("_kombu.binding", keys.FINISHED, keys.PACE, keys.WALK)


def read_history(
    folder: Path,
    store: ObjectStore,
    root: str,
    *,
    left: dict[str, int],
    resets: tuple[tuple[float, float], ...],
    shows: Callable[[bytes], str],
) -> History:
    """`folder` holds accepted-*.ndjson and events/*.ndjson; `shows` tells the tenant whose photo a picture is."""
    events = [event for path in sorted(folder.glob("events/*.ndjson")) for event in _lines(path.read_bytes())]
    with ThreadPoolExecutor(8) as pool:
        specs = [
            spec for found in pool.map(lambda uri: _specs(store, root, uri), _shards(store, root)) for spec in found
        ]
        results = pool.map(lambda uri: _ended(store, root, uri), _names(store, f"{root}/results/"))
        summaries = _names(store, f"{root}/summaries/")
        rolled = pool.map(lambda uri: _rolled(store, uri), [uri for uri in summaries if uri.endswith(".ndjson")])
        outputs = pool.map(lambda uri: _picture(store, uri, shows), _names(store, f"{root}/outputs/"))
        return History(
            accepted=tuple(accepted_jobs(folder)),
            specs=tuple(specs),
            results=tuple(results),
            rolled=tuple(rolled),
            outputs=tuple(outputs),
            claims=tuple(
                Claimed(event["job"], event["attempt"], event["begin"], event["at"])
                for event in events
                if event["kind"] == "claimed"
            ),
            wins=tuple(Won(event["uri"], event["at"]) for event in events if event["kind"] == "won"),
            given_back=frozenset(event["job"] for event in events if event["kind"] == "given back"),
            resets=resets,
            left=left,
        )


def accepted_jobs(folder: Path) -> Iterator[Accepted]:
    for path in sorted(folder.glob("accepted-*.ndjson")):
        for submission in _lines(path.read_bytes()):
            for job_id, spec in submission["jobs"]:
                yield Accepted(job_id, spec.encode())


def left_in_redis(client: redis.Redis) -> dict[str, int]:
    """Sizes of all that is left but what may stay; the key's pattern without ids → how many."""
    left: dict[str, int] = defaultdict(int)
    for name in (raw.decode() for raw in client.scan_iter(count=1000)):
        if name in ("unacked", "unacked_index"):
            left["unacked"] = unacked(client)[0]
        elif name not in _NAMES and not name.startswith(_PREFIXES):
            left[re.sub(r"[0-9a-f]{32}", "…", name)] += _size(client, name)
    return dict(left)


def unacked(client: redis.Redis) -> tuple[int, int]:
    """Hints that some worker had and did not acknowledge: (of jobs that have not ended, of none).

    The second kind is what a killed worker had in hand. Celery hands it out again after a day; nobody waits for that.
    """
    waiting = stale = 0
    for message in client.hvals("unacked"):
        hint = json.loads(base64.b64decode(json.loads(message)[0]["body"]))[1]["hint"]
        if any(client.exists(keys.job_row(job[0])) for job in hint["jobs"]):
            waiting += 1
        else:
            stale += 1
    return waiting, stale


def _size(client: redis.Redis, name: str) -> int:
    measure = {"list": client.llen, "hash": client.hlen, "zset": client.zcard, "set": client.scard}
    return int(measure.get(client.type(name).decode(), lambda _: 1)(name))


def _lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def _names(store: ObjectStore, prefix: str) -> list[str]:
    return [info.uri for info in store.list(prefix)]


def _shards(store: ObjectStore, root: str) -> list[str]:
    """The shards of accepted work: single jobs, and those of batches that were sealed."""
    names = set(_names(store, keys.specs(root)))
    return [
        uri
        for uri in sorted(names)
        if re.search(r"/(single|\d+)\.ndjson$", uri)
        and (uri.endswith("/single.ndjson") or f"{uri.rpartition('/')[0]}/batch.json" in names)
    ]


def _specs(store: ObjectStore, root: str, uri: str) -> list[Spec]:
    tenant, batch = uri.removeprefix(keys.specs(root)).split("/")[:2]
    data = store.get(uri, max_bytes=_MOST).data
    return [
        Spec(keys.job_id(tenant, batch, json.loads(line)["custom_id"]), tenant, batch, line)
        for line in data.splitlines()
    ]


def _ended(store: ObjectStore, root: str, uri: str) -> Ended:
    tenant, batch, name = uri.removeprefix(f"{root}/results/").split("/")
    job, generation, _ = name.split(".")
    return Ended(job, tenant, batch, int(generation), JobResult.from_json(store.get(uri, max_bytes=_MOST).data))


def _rolled(store: ObjectStore, uri: str) -> Rolled:
    lines = store.get(uri, max_bytes=_MOST).data.splitlines()
    return Rolled(uri, tuple(JobResult.from_json(line) for line in lines))


def _picture(store: ObjectStore, uri: str, shows: Callable[[bytes], str]) -> Picture:
    there = store.get(uri, max_bytes=_MOST)
    told = there.metadata
    return Picture(
        uri, sha256(there.data).hexdigest(), told.get("job", "?"), int(told.get("generation", -1)), shows(there.data)
    )
