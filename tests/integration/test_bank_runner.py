"""What jobs bring, from the spec to the renderer: held while it paints, brought ahead for jobs that were claimed."""

from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save

from farm.states import JobState
from tests.integration.test_runner import Bench


@pytest.fixture
def bench(local_store, redis_url, tmp_path):
    """A worker whose RAM has no room for what no job holds."""
    root = f"file://{tmp_path / 'store'}"
    made = Bench(local_store, root, redis_url, lora_ram_bytes=0, lora_disk_path=tmp_path / "disk")
    yield made
    made.runner._bank.close()


def weights(seed: int) -> bytes:
    return save({"a": np.full(100, seed, np.float32)})


def test_all_that_a_job_brings_is_held_until_it_is_painted(bench):
    loras = [{"path": bench.put(f"{n}.safetensors", weights(n)), "scale": 0.5 + n} for n in range(2)]
    word = {"path": bench.put("word.safetensors", weights(7)), "token": "<brand>"}
    adapter = {"path": bench.put("adapter.safetensors", weights(8)), "image": bench.uri("photo.png")}
    seen = []

    def look(request):
        seen.append((request, bench.runner._bank._ram.bytes))

    bench.painter.before = look
    handle = bench.submit(loras=loras, embeddings=[word], ip_adapter=adapter)
    assert bench.run(handle) is JobState.SUCCEEDED
    ((request, held),) = seen
    assert [(ref.scale, asset.weights) for ref, asset in request.loras] == [(0.5, weights(0)), (1.5, weights(1))]
    assert [(ref.token, asset.weights) for ref, asset in request.embeddings] == [("<brand>", weights(7))]
    assert request.ip_adapter[1].weights == weights(8)
    assert held == 4 * len(weights(0)) and bench.runner._bank._ram.bytes == 0
    assert handle.result(timeout=1).hashes.loras.keys() == {ref["path"] for ref in (*loras, word, adapter)}


def test_weights_of_jobs_that_wait_are_brought_while_the_first_is_painted(bench, tmp_path, monkeypatch):
    """Room is on disk only: when the first of three jobs is painted, what the others need arrives there."""
    monkeypatch.setattr("worker.runner.KEPT_SECONDS", 60.0)
    bench.runner._seconds_a_job = 0.01
    handles = [
        bench.submit(loras=[{"path": bench.put(f"{n}.safetensors", weights(n))}], custom_id=f"{n}") for n in range(3)
    ]
    tiers, arrived = [], threading.Event()

    def wait(request):
        tiers.append(request.loras[0][1].tier)
        for _ in range(400):
            if len(list((tmp_path / "disk" / "versions").iterdir())) == 3:
                arrived.set()
                return
            threading.Event().wait(0.05)

    bench.painter.before = wait
    ended = bench.runner.run([handle._ref for handle in handles])
    assert list(ended.values()) == [JobState.SUCCEEDED] * 3 and arrived.is_set()
    assert tiers[1:] == ["disk", "disk"]


def test_what_took_a_worker_down_is_not_brought_ahead(bench):
    handle = bench.submit(loras=[{"path": bench.put("a.safetensors", weights(1))}])
    brought = []
    bench.runner._bank.prefetch = lambda refs, **_: brought.append(refs)
    (claim,) = bench.ledger.claim([handle._ref], lease_seconds=60)
    line = bench.runner._lines([handle._ref])
    for crashes in (0, 1):
        bench.runner._look_ahead([(handle._ref, replace(claim, crashes=crashes))], line, 0.0)
    assert len(brought) == 1
