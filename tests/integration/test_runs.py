"""`farm run` as a process against real workers, killed at half and finished by another."""

import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from farm import keys
from producer.diagnosis import diagnose
from producer.process import Process
from tests.integration.quick_farm import QuickFarm

WORKER_S = frozenset({"device", "model"})
_GROWTH = 24 * 1024**2  # bytes that ten times the jobs may cost a client


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def farm_run(farm: QuickFarm, *arguments: str) -> Process:
    return Process(
        [sys.executable, "-m", "producer", "run", *arguments], farm.inputs / "run.log", farm.client_environment()
    )


def peak_memory(process: Process) -> int:
    """Bytes that a process had at most so far; 0 when it is gone."""
    try:
        text = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith("VmHWM")), 0)


def finished(process: Process, seconds: float) -> int:
    """Wait for the end; the most memory it had on the way."""
    most, end = 0, time.monotonic() + seconds
    while process.exit_code is None:
        assert time.monotonic() < end, process.tail()
        most = max(most, peak_memory(process))
        time.sleep(0.1)
    assert process.exit_code == 0, process.tail()
    return most


def killed_at_half_and_resumed(farm: QuickFarm, rows: int, seconds: float) -> int:
    """The most memory of the client that finished the run."""
    manifest = farm.manifest(rows, f"of-{rows}.jsonl")
    folder = farm.inputs / f"of-{rows}.run"
    results = folder / "results.ndjson"
    first = farm_run(farm, str(manifest))
    try:
        first.wait_until(lambda: lines(results) >= rows // 2, seconds, every=0.02)
    finally:
        first.kill()
    assert rows // 2 <= lines(results) < rows, "it was killed too late to show anything"
    with results.open("ab") as file:
        file.write(b'{"schema_version":1,"job_')  # as a machine that lost power leaves it
    most = finished(farm_run(farm, str(manifest), "--resume"), seconds)
    found = [json.loads(line) for line in results.read_text().splitlines()]
    assert [result["custom_id"] for result in found] == [f"sku-{n}" for n in range(rows)]
    assert {result["status"] for result in found} == {"succeeded"}
    assert {result["receipt"]["max_abs_diff_outside"] for result in found} == {0}
    painted = Counter(
        note["name"]
        for path in (farm.inputs.parent / "events").glob("*.ndjson")
        for note in map(json.loads, path.read_text().splitlines())
        if note["kind"] == "painting"
    )
    assert all(painted[f"sku-{n}"] >= 1 for n in range(rows))
    return most


def test_a_run_that_was_killed_at_half_is_finished_by_another(tmp_path):
    with QuickFarm(tmp_path, seconds="0.01-0.02") as farm:
        farm.wait_ready()
        killed_at_half_and_resumed(farm, 200, 120)


@pytest.mark.full
def test_ten_times_the_jobs_cost_the_client_no_more_memory(tmp_path):
    with QuickFarm(tmp_path, seconds="0.001-0.002", workers=2) as farm:
        farm.wait_ready()
        few = killed_at_half_and_resumed(farm, 200, 300)
        many = killed_at_half_and_resumed(farm, 2000, 600)
    assert many < few + _GROWTH, f"{few:,} bytes for 200 jobs, {many:,} for 2,000"


def test_the_commands_for_operators_see_a_living_farm(tmp_path):
    with QuickFarm(tmp_path) as farm:
        farm.wait_ready()

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "producer", *arguments]
            return subprocess.run(command, env=farm.client_environment(), capture_output=True, text=True, timeout=120)

        manifest = farm.manifest(5)
        assert run("run", str(manifest)).returncode == 0
        top = json.loads(run("top", "--json", "--every", "0.5").stdout)
        (worker,) = top["workers"]
        assert (worker["state"], worker["images"]) == ("ready", 5)
        symptoms = {symptom.what: symptom.level for symptom in diagnose(farm.settings, leave_out=WORKER_S)}
        assert set(symptoms.values()) <= {"good", "warning"}, symptoms
        with farm.redis.client() as client:
            client.config_set("maxmemory-policy", "allkeys-lru")
            client.config_set("appendonly", "no")
            farm.stop_dispatcher()
            client.delete(keys.LEADER)
        levels = {symptom.what: symptom for symptom in diagnose(farm.settings, leave_out=WORKER_S)}
        for what in ("Redis append-only file", "Redis eviction", "dispatcher"):
            assert levels[what].level == "bad" and levels[what].cure
