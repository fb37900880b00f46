"""Celery messages that are none of ours."""

from __future__ import annotations

import base64
import json
import pickle
import uuid
import zlib
from collections.abc import Callable
from typing import Any

from tests.faults.bad_inputs.row import Message

_GOOD = {"tenant": "acme", "batch_id": "b", "model": "sd15-inpaint", "jobs": [["j" * 32, -1, 0, 100, 0, 50]]}


def message(
    body: bytes, *, task: str = "farm.render", kind: str = "application/json", encoding: str = "utf-8", **headers: Any
) -> bytes:
    """A message as kombu's Redis transport stores it."""
    number = str(uuid.uuid4())
    told = {"lang": "py", "task": task, "id": number, "root_id": number, "argsrepr": "", "kwargsrepr": "", **headers}
    delivery = {"exchange": "", "routing_key": "farm.sd15-inpaint"}
    properties = {
        "correlation_id": number, "reply_to": number, "delivery_mode": 2, "delivery_info": delivery, "priority": 0,
        "body_encoding": "base64", "delivery_tag": number,
    }  # fmt: skip
    envelope = {
        "body": base64.b64encode(body).decode(), "content-encoding": encoding, "content-type": kind,
        "headers": told, "properties": properties,
    }  # fmt: skip
    return json.dumps(envelope).encode()


def call(*args: Any, **kwargs: Any) -> bytes:
    return json.dumps([args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]).encode()


def hint(**changes: Any) -> bytes:
    return call(hint={**_GOOD, **changes})


def put(text: bytes) -> Callable[[Any, str], None]:
    return lambda client, queue: client.lpush(queue, text)


def _job(*values: Any) -> bytes:
    return message(hint(jobs=[values]))


class _Evil:
    """Would end the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (exit, (99,))


_ROWS = {
    "a pickle": message(pickle.dumps(_Evil()), kind="application/x-python-serialize", encoding="binary"),
    "a pickle that says it is JSON": message(pickle.dumps(_Evil())),
    "YAML": message(b"- !!python/object/apply:os._exit [99]", kind="application/x-yaml"),
    "a task that there is not": message(hint(), task="os.system"),
    "a task of Celery's own": message(call([1]), task="celery.backend_cleanup"),
    "an ETA that is none": message(hint(), eta="tomorrow"),
    "an expiry that is none": message(hint(), expires="tomorrow"),
    "time limits that are none": message(hint(), timelimit=["a", "b"]),
    "JSON that is cut short": message(b'[[], {"hint": '),
    "JSON that is no call": message(b"7"),
    "JSON that is null": message(b"null"),
    "a call that brings a callback": message(
        json.dumps([[], {"hint": _GOOD}, {"callbacks": [{"task": "os.system", "args": ["id"]}]}]).encode()
    ),
    "JSON 100,000 deep": message(b"[" * 100_000),
    "arguments of another shape": message(call(1, 2, 3, what=4)),
    "a chain to another task": message(
        json.dumps([[], {"hint": _GOOD}, {"chain": [{"task": "os.system", "args": ["id"]}]}]).encode()
    ),
    "compressed, 600 kB that inflate to 600 MB": message(
        zlib.compress(b" " * 600_000_000), compression="application/x-gzip"
    ),
    "compressed": message(zlib.compress(hint()), compression="application/x-gzip"),
    "a hint that is a number": message(call(hint=7)),
    "a hint without jobs": message(hint(jobs=[])),
    "a hint of 257 jobs": message(hint(jobs=_GOOD["jobs"] * 257)),
    "a tenant of ../..": message(hint(tenant="../..")),
    "a batch with a slash": message(hint(batch_id="a/b")),
    "a job's id of numbers": _job(7, -1, 0, 100, 0, 50),
    "a length of 2**60": _job("j", -1, 0, 2**60, 0, 50),
    "a negative offset": _job("j", -1, -1, 100, 0, 50),
    "a generation of NaN": message(hint(jobs=[]).replace(b'"jobs": []', b'"jobs": [["j", -1, 0, 100, NaN, 50]]')),
    "a job of too few values": _job("j"),
}

MESSAGES: tuple[Message, ...] = (
    *(Message(what, put(text)) for what, text in _ROWS.items()),
    Message("no message at all", put(b"rubbish")),
    Message("an empty string", put(b"")),
    Message("a message without properties", put(b'{"body": ""}')),
    Message("a JSON number", put(b"7")),
)
