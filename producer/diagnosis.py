"""What `farm doctor` looks at: each check says what it saw and, where that is wrong, what to change."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import redis

from farm import keys
from farm.config import Settings
from farm.errors import FarmError, InputForbidden, Misconfigured
from farm.ledger import connect
from farm.ledger.connection import mapped
from farm.storage import create_once_honoured, shown
from farm.weights import read_header

Level = Literal["good", "warning", "bad"]
Check = Callable[[Settings], Iterator["Symptom"]]

# The first releases of each line without CVE-2026-81934.
REDIS_FLOORS = ((7, 2, 16), (7, 4, 11), (8, 2, 9))
MOST_SKEW_SECONDS = 5.0
_DEVICE_SECONDS = 120.0
# Asked of a process of its own, so that torch never enters this one.
_DEVICE_PROGRAM = """
import json, torch
from worker.device import choose_device, choose_dtype, memory
from farm.config import load_settings
settings = load_settings()
device = choose_device(settings.device)
name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
print(json.dumps({"device": device, "name": name, "torch": torch.__version__,
    "dtype": str(choose_dtype(settings.dtype, device)), "total": memory(device).get("total", 0)}))
"""


@dataclass(frozen=True)
class Symptom:
    """One line of a diagnosis. `cure` says what to change; empty where nothing is wrong."""

    level: Level
    what: str
    seen: str
    cure: str = ""


def diagnose(settings: Settings, *, leave_out: frozenset[str] = frozenset()) -> Iterator[Symptom]:
    """Every check of CHECKS in turn; one that fails altogether is a symptom itself."""
    for what, check in CHECKS.items():
        if what in leave_out:
            continue
        try:
            yield from check(settings)
        except FarmError as error:
            yield Symptom("bad", what, f"{error.code}: {error}")


# Redis


def _redis(settings: Settings) -> Iterator[Symptom]:
    client = connect(settings.redis_url)
    begin = time.monotonic()
    with mapped():
        client.ping()
        info = client.info()
    milliseconds = 1000 * (time.monotonic() - begin)
    slow = milliseconds > 100
    yield Symptom(
        "warning" if slow else "good", "Redis", f"answers in {milliseconds:.1f} ms",
        "put Redis and the farm into one place: every job asks it several times" if slow else "",
    )  # fmt: skip
    yield _version(info)
    yield _persistence(info)
    yield _eviction(info)
    yield _room(info, settings)
    yield _dispatcher(client)


def _version(info: dict[str, Any]) -> Symptom:
    if "valkey_version" in info:
        return Symptom("good", "Redis version", f"Valkey {info['valkey_version']}")
    text = str(info.get("redis_version", ""))
    version = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
    floor = next((floor for floor in REDIS_FLOORS if floor[:2] == version[:2]), None)
    if version and ((floor is None and version[:2] > REDIS_FLOORS[-1][:2]) or (floor is not None and version >= floor)):
        return Symptom("good", "Redis version", text)
    floors = ", ".join(".".join(map(str, floor)) for floor in REDIS_FLOORS)
    return Symptom(
        "warning", "Redis version", text or "not told", f"use {floors} or newer of its line (CVE-2026-81934), or Valkey"
    )


def _persistence(info: dict[str, Any]) -> Symptom:
    if not info.get("aof_enabled"):
        cure = "set `appendonly yes`: without it a restart loses the index, which is then made anew from the store"
        return Symptom("bad", "Redis append-only file", "off", cure)
    if info.get("aof_last_write_status", "ok") != "ok":
        return Symptom("bad", "Redis append-only file", "cannot be written", "give Redis room on its disk")
    return Symptom("good", "Redis append-only file", "on")


def _eviction(info: dict[str, Any]) -> Symptom:
    policy = str(info.get("maxmemory_policy", "not told"))
    if policy == "noeviction":
        return Symptom("good", "Redis eviction", policy)
    cure = "set `maxmemory-policy noeviction`: an index of which rows vanish forgets jobs until they are looked for"
    return Symptom("bad", "Redis eviction", policy, cure)


def _room(info: dict[str, Any], settings: Settings) -> Symptom:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most:
        return Symptom(
            "warning", "Redis memory", f"{used:,} bytes, no limit",
            "set `maxmemory`, so that submits are refused before the machine has none left",
        )  # fmt: skip
    share = used / most
    seen = f"{used:,} of {most:,} bytes ({share:.0%})"
    if share > settings.redis_full_at:
        return Symptom("bad", "Redis memory", seen, "nothing new is accepted: give Redis more memory")
    return Symptom("good", "Redis memory", seen)


def _dispatcher(client: redis.Redis) -> Symptom:
    try:
        with mapped():
            leads = client.ttl(keys.LEADER)
    except FarmError:  # an SDK's role may not ask
        return Symptom("warning", "dispatcher", "this user may not ask", "run the doctor as the dispatcher's user")
    if leads > 0:
        return Symptom("good", "dispatcher", "one leads")
    return Symptom("bad", "dispatcher", "none leads", "start `farm dispatcher`: without it no job is given to a worker")


def _clock(settings: Settings) -> Iterator[Symptom]:
    client = connect(settings.redis_url)
    with mapped():
        before = time.time()
        seconds, micros = client.time()
        after = time.time()
    skew = seconds + micros / 1e6 - (before + after) / 2
    seen = f"{skew:+.3f} s from Redis' (±{(after - before) / 2:.3f})"
    if abs(skew) > MOST_SKEW_SECONDS:
        cure = "run NTP on both: deadlines and signed requests to S3 go by this clock"
        yield Symptom("bad", "clock", seen, cure)
    else:
        yield Symptom("good", "clock", seen)


# The store


def _store(settings: Settings) -> Iterator[Symptom]:
    store, where = settings.open_store(), shown(settings.store)
    try:
        honoured = create_once_honoured(store, settings.store)
    except InputForbidden as error:
        cure = "run the doctor with the dispatcher's S3 role: it writes and deletes a scratch object"
        yield Symptom("warning", "store", f"{where}: may not be tried with this role: {error}", cure)
        return
    if honoured:
        yield Symptom("good", "store", f"{where}: reads, writes, and honours create-once")
    else:
        cure = "use a store that honours If-None-Match: * (AWS S3, Ceph, a local folder): two workers could both commit"
        yield Symptom("bad", "store", f"{where}: ignores create-once writes, and says nothing", cure)


# The worker's side


def _device(settings: Settings) -> Iterator[Symptom]:
    if find_spec("worker") is None or find_spec("torch") is None:
        yield Symptom("good", "device", "farm-worker is not installed here")
        return
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DEVICE_PROGRAM], capture_output=True, text=True, timeout=_DEVICE_SECONDS, check=True
        )
        told = json.loads(done.stdout)
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["it said nothing"])[-1]
        yield Symptom("bad", "device", last[:200], "see FARM_DEVICE and FARM_DTYPE, and the driver (`nvidia-smi`)")
        return
    except (subprocess.TimeoutExpired, ValueError):
        yield Symptom("bad", "device", "does not answer", "see whether the device's driver hangs (`nvidia-smi`)")
        return
    size = f", {told['total'] / 1024**3:.0f} GiB" if told["total"] else ""
    seen = f"{told['device']} ({told['name']}{size}), {told['dtype']}, torch {told['torch']}"
    slow = told["device"] == "cpu"
    yield Symptom("warning" if slow else "good", "device", seen, "no GPU was found: jobs take minutes" if slow else "")


def _model(settings: Settings) -> Iterator[Symptom]:
    path = settings.model_path
    if path is None:
        yield Symptom("good", "model", "FARM_MODEL_PATH is not set: no worker runs from here")
        return
    cure = "give the folder of a checkpoint in the diffusers layout, safetensors only"
    if not (path / "model_index.json").is_file():
        yield Symptom("bad", "model", f"{path} holds no model_index.json", cure)
        return
    files = sorted(path.glob("*/*.safetensors"))
    pickles = [file.name for file in path.glob("*/*") if file.suffix in (".bin", ".ckpt", ".pt")]
    if not files:
        yield Symptom("bad", "model", f"{path} holds no safetensors", "convert it: `farm-worker convert`")
        return
    for file in files:
        _whole(file)
    seen = f"{path}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1024**3:.2f} GiB, whole"
    yield Symptom("good", "model", seen + (f" ({len(pickles)} pickles beside them are not read)" if pickles else ""))


def _whole(file: Path) -> None:
    try:
        read_header(file)
    except FarmError as error:
        raise Misconfigured(f"{file}: {error}") from None


CHECKS: dict[str, Check] = {"Redis": _redis, "clock": _clock, "store": _store, "device": _device, "model": _model}
