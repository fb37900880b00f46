"""The demo's jobs by a worker with the JAX back end: from the queue to the page."""

import json
from functools import partialmethod

import pytest

from producer import demo
from producer.embedded import EmbeddedFarm

JAX = {"FARM_BACKEND": "jax", "FARM_SIZE_BUCKETS": '["128x128"]'}  # each size takes a minute to compile on a CPU


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_demos_jobs_succeed_with_the_jax_back_end(tmp_path, monkeypatch, capsys):
    environment = demo._environment
    monkeypatch.setattr(demo, "_environment", lambda *args: {**environment(*args), **JAX})
    monkeypatch.setattr(EmbeddedFarm, "wait_ready", partialmethod(EmbeddedFarm.wait_ready, timeout=900.0))
    assert demo.run_demo(tmp_path / "out", jobs=24) == 0, capsys.readouterr().out
    results = [json.loads(line) for line in (tmp_path / "out" / "results.ndjson").read_text().splitlines()]
    assert len(results) == 24 and {result["status"] for result in results} == {"succeeded"}
    assert {result["device"] for result in results} == {"jax-cpu"}
    branded = [result for result in results if result["loras"]]
    assert branded and all(result["lora_mode"] == "merged" for result in branded)
    assert any(result["lora_swap_seconds"] > 0 for result in branded)
    assert (tmp_path / "out" / "index.html").exists()
