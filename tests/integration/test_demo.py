"""`farm demo`, as a newcomer runs it: its pictures, its results, its page, and nothing left running."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from producer.demo import BRANDS, SIZES
from worker.demo import shipped
from worker.demo.scenes.looks import LOOKS
from worker.demo.training.lineage import Lineage

COMMAND = [sys.executable, "-m", "producer", "demo"]


def children_of(folder: Path) -> list[int]:
    """Processes whose command line or environment names `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if str(folder).encode() in text and int(entry.name) != subprocess.os.getpid():
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    done = subprocess.run([*COMMAND, "--out", str(out)], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    return out, done.stdout


@pytest.fixture(scope="module")
def results(demo):
    return [json.loads(line) for line in (demo[0] / "results.ndjson").read_text().splitlines()]


def test_all_jobs_succeeded(results):
    assert len(results) >= 24
    assert {result["status"] for result in results} == {"succeeded"}
    assert len({result["custom_id"] for result in results}) == len(results)
    assert {"custom_id", "status", "image", "mask", "outputs", "error", "timings"} <= set(results[0])


def test_the_gate_has_next_to_nothing_against_them(results):
    assert sum(result["needs_review"] for result in results) <= 1, [result["outputs"] for result in results]


def test_brands_alternate_job_by_job_where_the_backdrop_is_a_studios(results):
    branded = [result for result in results if result["loras"]]
    assert {result["custom_id"].split("-")[2] for result in branded} == {"keep"}
    names = [Path(result["loras"][0]["path"]).stem for result in branded]
    assert len(names) >= len(results) // 3 and set(names) == set(BRANDS)
    assert all(one != following for one, following in pairwise(names))
    for result, name in zip(branded, names, strict=True):
        assert result["prompt"].endswith(BRANDS[name]) and result["lora_swap_seconds"] > 0
    assert not any(words in result["prompt"] for result in results if not result["loras"] for words in BRANDS.values())


def test_the_brands_are_those_that_the_model_comes_with():
    assert set(BRANDS) == {path.stem for path in shipped.LORAS.glob("*.safetensors")} == set(LOOKS)
    assert all(words in LOOKS[name].triggers for name, words in BRANDS.items())
    settings = Lineage.load(shipped.JOURNAL).settings
    trained = {(width, height) for height, width, _ in settings["pool"]["shapes"]}
    assert {tuple(map(int, size.split("x"))) for size in SIZES} <= trained


def path_of(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def test_outside_the_submitted_mask_no_pixel_changed(results):
    for result in results:
        before = np.array(Image.open(path_of(result["image"])).convert("RGB")).astype(int)
        after = np.array(Image.open(path_of(result["outputs"][0]["uri"])).convert("RGB")).astype(int)
        inside = np.array(Image.open(path_of(result["mask"])).convert("L")) >= 128
        assert np.abs(after - before)[~inside].max(initial=0) == 0, result["custom_id"]
        assert np.abs(after - before)[inside].max() > 8, result["custom_id"]
        assert result["receipt"]["max_abs_diff_outside"] == 0


def test_it_says_how_fast_and_where_to_look(demo, results):
    out, said = demo
    assert "24 of 24 succeeded" in said
    modes = [result["lora_mode"] for result in results if result["loras"]]
    assert "images/s" in said and f"\n{len(modes)} with a LoRA" in said
    assert all("merged" in mode or "mixed" in mode for mode in modes)
    seconds = sum(result["lora_swap_seconds"] for result in results)
    assert f"swapping took {round(1000 * seconds / len(modes), 1)} ms" in " ".join(said.split())
    assert 'farm_jobs_total{error="",model="sd15-inpaint",status="succeeded"} 24.0' in said
    assert "index.html" in said
    page = (out / "index.html").read_text()
    assert len(page) < 6_000_000
    assert page.count("<img") >= 3 or "data:image" in page


def test_nothing_is_left_running(demo):
    assert children_of(demo[0]) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_what_it_started(tmp_path, how):
    out = tmp_path / "out"
    child = subprocess.Popen([*COMMAND, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    end = time.monotonic() + 60
    while not (out / "farm" / "worker.log").exists():
        assert time.monotonic() < end and child.poll() is None
        time.sleep(0.1)
    child.send_signal(how)
    assert child.wait(120) == 130
    assert b"Traceback" not in child.stdout.read()
    assert children_of(out) == []


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    done = subprocess.run([*COMMAND, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2
    assert "not empty" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
