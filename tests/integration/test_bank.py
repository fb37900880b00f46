"""The bank against real stores, and a disk tier that several processes share, one of which dies."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256

import numpy as np
import pytest
from safetensors.numpy import save

from farm.errors import InputChanged, LoraNotFound
from farm.schemas import LoraRef
from farm.storage import join
from farm.storage.local import LocalStore
from tests.integration.bank_worker import DISK
from worker.bank import Budgets, LoraBank

BUDGETS = Budgets(device=0, ram=10**6, disk=10**6, file=10**6)


def weights(seed: int, numbers: int = 25_000) -> bytes:
    """About 100 kB of LoRA."""
    return save({"a": np.random.default_rng(seed).standard_normal(numbers).astype(np.float32)})


def put(place, name: str, data: bytes) -> LoraRef:
    uri = join(place.url, name)
    place.store.put(uri, data, content_type="application/octet-stream", create_only=False)
    return LoraRef(path=uri)


def test_every_store_gives_its_loras_and_tells_of_changes(any_store, tmp_path):
    folder = tmp_path / "disk"

    def fresh() -> LoraBank:
        return LoraBank(any_store.store, bytes, device="cpu", budgets=BUDGETS, folder=folder)

    bank, ref, moved = fresh(), put(any_store, "a", weights(1)), []
    with bank.hold([ref], progress=moved.append) as (first,), bank.hold([ref]) as (second,):
        assert first.weights == weights(1) and (first.tier, second.tier) == ("remote", "ram")
    put(any_store, "a", weights(2))
    with bank.hold([ref]) as (asset,):
        assert (asset.weights, asset.tier) == (weights(2), "remote")
    any_store.store.delete(ref.path)
    with pytest.raises(LoraNotFound), bank.hold([ref]):
        pass


def test_an_object_that_is_replaced_after_it_was_looked_at(any_store):
    bank = LoraBank(any_store.store, bytes, device="cpu", budgets=Budgets(0, 0, 0, 10**6))
    ref = put(any_store, "a", weights(1))
    with bank.hold([ref], since=0.0):
        pass
    put(any_store, "a", weights(2))
    with pytest.raises(InputChanged), bank.hold([ref], since=0.0):
        pass
    with bank.hold([ref]) as (asset,):
        assert asset.weights == weights(2)


@pytest.fixture
def farm(tmp_path):
    """A store with eight LoRAs; and how to start a worker on it, all on one folder."""
    url = f"file://{tmp_path}/store"
    store, shas = LocalStore(tmp_path / "store"), {}
    for seed, name in enumerate("abcdefgh"):
        store.put(f"{url}/{name}", weights(seed), content_type="x/y", create_only=False)
        shas[name] = sha256(weights(seed)).hexdigest()

    def start(mode: str, names: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.integration.bank_worker", url, str(tmp_path / "disk"), mode, *names]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start, shas, tmp_path / "disk"


def test_workers_of_one_machine_share_the_disk_and_outlive_one_that_dies(farm):
    start, shas, folder = farm
    dead = start("die", "a")
    assert dead.wait(60) == -9 and len(list((folder / "partial").iterdir())) == 1
    workers = [start("hold", "abcdefgh"), start("hold", "hgfedcba"), start("hold", "aceghbdf")]
    for worker in workers:
        out, err = worker.communicate(timeout=120)
        assert worker.returncode == 0, err
        lines = [line.split() for line in out.splitlines()]
        assert len(lines) == 8
        for name, tier, digest in lines:
            assert digest == shas[name] and tier in ("disk", "remote")
    kept = {path.name: path.stat().st_size for path in (folder / "files").iterdir()}
    assert not list((folder / "partial").iterdir()) and kept.keys() <= set(shas.values())
    assert 0 < sum(kept.values()) <= DISK
    last = [name for name in shas if shas[name] in kept]
    out, _ = start("hold", "".join(last)).communicate(timeout=60)
    assert [line.split()[1] for line in out.splitlines()] == ["disk"] * len(last)
