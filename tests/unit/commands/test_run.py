"""`farm run` against a farm in memory: what it says and writes, and its exit code."""

import fcntl
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from producer.commands import common
from producer.testing import FakeFarm
from tests.unit.commands.words import last, manifest, written


def test_a_run_writes_its_results_in_the_manifest_s_order(farm, run):
    done = run("run", manifest(farm, 25))
    assert done.exit_code == 0, done.stderr
    assert [result["custom_id"] for result in written()] == [f"sku-{n}" for n in range(25)]
    assert "25 of 25 succeeded" in done.stdout


def test_a_dry_run_finds_every_bad_row_and_submits_nothing(farm, run):
    path = manifest(farm, 2)
    photo, mask = farm.photo("photo.png"), farm.mask("mask.png")
    black = farm.put("black.png", Image.new("L", (96, 64), 0))
    almost = Image.new("L", (96, 64), 255)
    almost.putpixel((0, 0), 0)
    rows = [
        ({"image": "s3://fake/nowhere.png", "mask": mask}, "InputNotFound"),
        ({"image": photo, "mask": farm.mask("small.png", (32, 32))}, "MaskSizeMismatch"),
        ({"image": photo, "mask": black}, "MaskEmpty"),
        ({"image": farm.put("text.png", b"no picture at all"), "mask": mask}, "UnsupportedImageFormat"),
        ({"image": "s3://fake/farm/specs/x.png", "mask": mask}, "AccessDenied"),
        ({"image": photo}, "InvalidParameter"),
        ({"image": photo, "mask": mask, "loras": [{"path": "s3://fake/none.safetensors"}]}, "LoraNotFound"),
        ({"image": photo, "mask": mask, "loras": [{"path": farm.put("l.safetensors", b"x" * 40)}]}, "LoraInvalid"),
        ({"image": photo, "mask": mask, "loras": [{"path": "s3://fake/l.ckpt"}]}, "UnsafeWeightsFormat"),
        ({"image": photo, "mask": mask, "sede": 1}, "UnknownField"),
        ({"image": photo, "mask": mask, "custom_id": "sku-1"}, "InvalidParameter"),  # comes twice
        ({"image": photo, "mask": mask, "custom_id": "there", "output": "s3://fake/out/"}, "OutputExists"),
        ({"image": photo, "mask": farm.put("large.png", almost)}, "Mask"),
    ]
    farm.put("out/there.png", b"x")
    with path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row, _ in rows)
    done = run("run", path, "--dry-run", "--json", "--rate", "3.6", "--price", "2")
    *events, quote = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(event["row"], event["code"]) for event in events] == [(n, code) for n, (_, code) in enumerate(rows, 2)]
    assert [event["event"] for event in events] == ["error"] * 12 + ["warning"]
    assert (quote["jobs"], quote["bad_rows"], quote["rows_with_warnings"]) == (15, 12, 1)
    assert done.exit_code == 1 and farm.rendered == [] and not Path("catalogue.run").exists()
    assert quote["gpu_hours"] == pytest.approx(quote["images"] * 3.6 / 3600)
    assert quote["cost"] == pytest.approx(2 * quote["gpu_hours"])
    assert "12 bad" in run("run", path, "--dry-run").stdout


def test_a_sample_stops_for_review_and_resume_renders_the_rest_once(farm, run):
    path = manifest(farm, 10)
    done = run("run", path, "--sample", 3)
    assert done.exit_code == 0 and "--resume" in done.stdout
    assert [result["custom_id"] for result in written()] == ["sku-0", "sku-1", "sku-2"]
    assert len(farm.rendered) == 3
    assert run("run", path, "--resume").exit_code == 0
    assert [result["custom_id"] for result in written()] == [f"sku-{n}" for n in range(10)]
    assert len(farm.rendered) == 10
    again = run("run", path, "--resume", "--json")
    assert again.exit_code == 0 and last(again.stdout)["succeeded"] == 10
    assert len(farm.rendered) == 10


def test_half_a_line_is_written_again(farm, run):
    path = manifest(farm, 10)
    run("run", path)
    results = Path("catalogue.run/results.ndjson")
    whole = results.read_bytes()
    results.write_bytes(whole[: len(whole) * 55 // 100])
    assert run("run", path, "--resume").exit_code == 0
    assert results.read_bytes() == whole
    results.write_bytes(b"no line at all")
    assert run("run", path, "--resume").exit_code == 0
    assert results.read_bytes() == whole


def test_results_of_another_run_are_not_mixed_in(farm, run):
    path, other = manifest(farm, 3), manifest(farm, 3, "other.jsonl", seed=1)
    run("run", path)
    run("run", other)
    Path("catalogue.run/results.ndjson").write_bytes(Path("other.run/results.ndjson").read_bytes())
    done = run("run", path, "--resume")
    assert done.exit_code == 2 and "another run" in done.stderr


def test_failed_jobs_are_retried_and_the_results_written_anew(farm, run):
    path = manifest(farm, 6)
    farm.fail("sku-2", "NsfwContent")
    farm.fail("sku-4", "BlackOutput", times=2)
    done = run("run", path)
    assert done.exit_code == 1 and "NsfwContent 1" in done.stdout and "--retry-failed" in done.stderr
    done = run("run", path, "--retry-failed")
    assert done.exit_code == 1 and "5 of 6 succeeded" in done.stdout
    assert [result["status"] for result in written()].count("failed") == 1
    assert run("run", path, "--retry-failed").exit_code == 0
    assert [(result["custom_id"], result["generation"]) for result in written()] == [
        ("sku-0", 0), ("sku-1", 0), ("sku-2", 1), ("sku-3", 0), ("sku-4", 2), ("sku-5", 0),
    ]  # fmt: skip


def test_a_run_is_not_begun_over_another(farm, run):
    path = manifest(farm, 2)
    run("run", path)
    done = run("run", path)
    assert done.exit_code == 2 and "--resume" in done.stderr
    path.write_text(path.read_text() + path.read_text().replace("sku", "new"))
    done = run("run", path, "--resume")
    assert done.exit_code == 2 and "IdempotencyConflict" in done.stderr
    assert run("run", path, "--resume", "--out", "elsewhere").exit_code == 2
    Path("full").mkdir()
    Path("full/thing").touch()
    assert "not empty" in run("run", path, "--out", "full").stderr


def test_the_same_manifest_renders_once_and_under_another_key_again(farm, run):
    path = manifest(farm, 4)
    run("run", path)
    run("run", path, "--out", "again")
    assert len(farm.rendered) == 4
    run("run", path, "--out", "anew", "--key", "tuesday")
    assert len(farm.rendered) == 8


def test_a_budget_refuses_what_is_known_to_cost_more(farm, run):
    path = manifest(farm, 10, num_images_per_prompt=2)
    done = run("run", path, "--max-cost", 0.01, "--price", 3600, "--rate", 1)
    assert done.exit_code == 1 and "20.00" in done.stderr and farm.rendered == []
    assert "price" in run("run", path, "--max-cost", 1).stderr
    assert run("run", path, "--max-cost", 100, "--price", 3600, "--rate", 1).exit_code == 0, "no run was begun before"


def test_a_refused_budget_lets_nothing_go_on(farm, run):
    farm.fail("sku-1", "NsfwContent")
    path = manifest(farm, 6)
    run("run", path, "--sample", 2)
    (batch,) = farm.client().index.batches._shared.footers
    farm.client().batch(batch).pause()
    for how in ("--resume", "--retry-failed"):
        assert run("run", path, how, "--max-cost", 1, "--price", 3600).exit_code == 1
        assert farm.client().batch(batch).status().paused and len(farm.rendered) == 1
    assert run("run", path, "--resume", "--retry-failed").exit_code == 0
    assert [result["status"] for result in written()] == ["succeeded"] * 6


def test_a_budget_pauses_what_turns_out_to_cost_more(farm, run, monkeypatch):
    farm.auto = False
    path = manifest(farm, 6)
    clock = SimpleNamespace(sleep=lambda seconds: farm.work(2), monotonic=time.monotonic)
    monkeypatch.setattr("producer.following.time", clock)  # two jobs end whenever somebody waits
    done = run("run", path, "--max-cost", 5, "--price", 3600)  # a picture takes 2 s: two cost 4, three 6
    assert done.exit_code == 1 and "paused" in done.stderr
    assert 3 <= len(farm.rendered) < 6
    (batch,) = farm.client().index.batches._shared.footers
    assert farm.client().batch(batch).status().paused
    assert run("run", path, "--resume", "--max-cost", 50, "--price", 3600).exit_code == 0
    assert len(farm.rendered) == 6 and len(written()) == 6


def test_the_quote_goes_by_what_the_sample_took(farm, run):
    path = manifest(farm, 10)
    run("run", path, "--sample", 2)
    done = run("run", path, "--resume", "--max-cost", 10, "--price", 3600)
    assert done.exit_code == 1 and "measured over the 2 pictures" in done.stderr
    assert len(farm.rendered) == 2


def test_a_dry_run_quotes_by_the_sample_of_the_very_same_manifest(farm, run):
    path = manifest(farm, 10)
    assert last(run("run", path, "--dry-run", "--json").stdout)["rate_from"] is None
    run("run", path, "--sample", 2)
    quote = last(run("run", path, "--dry-run", "--json", "--price", 3600).stdout)
    assert quote["rate_from"] == "measured over the 2 pictures that this run has"
    assert (quote["images"], quote["gpu_seconds_per_image"], quote["cost"]) == (10, 2.0, pytest.approx(20.0))
    assert last(run("run", path, "--dry-run", "--json", "--rate", 1).stdout)["gpu_seconds_per_image"] == 1
    other = run("run", path, "--dry-run", "--json", "--set", "num_inference_steps=9")
    assert last(other.stdout)["rate_from"] is None
    assert len(farm.rendered) == 2


def test_fields_set_for_all_and_openai_s_shape(farm, run):
    path = manifest(farm, 3)
    done = run("run", path, "--set", "prompt=oak", "--set", "num_images_per_prompt=2", "--format", "openai", "--json")
    assert done.exit_code == 0
    assert {job.prompt for job in farm.rendered} == {"oak"}
    lines = [json.loads(line) for line in Path("catalogue.run/results.openai.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"id", "custom_id", "response", "error"}] * 3
    assert len(lines[0]["response"]["body"]["data"]) == 2 and lines[0]["error"] is None
    assert run("run", path, "--set", "prompt").exit_code == 2


def test_what_came_to_nothing_may_be_begun_again(farm, run):
    path = manifest(farm, 2)
    good = path.read_text()
    path.write_text(good + "{}")
    assert "line 3" in run("run", path).stderr and farm.rendered == []
    path.write_text(good)
    assert run("run", path).exit_code == 0 and len(written()) == 2


def test_a_run_whose_results_are_there_is_not_begun_again_where_its_batch_is_not(farm, run):
    path = manifest(farm, 2)
    run("run", path)
    for info in list(farm.store.list(f"{farm.client().settings.store}/specs/")):
        farm.store.delete(info.uri)
    assert "already" in run("run", path).stderr and len(farm.rendered) == 2


def test_a_webhook_is_not_dropped_where_the_batch_was_submitted_before(monkeypatch, run):
    farm = FakeFarm(webhook_hosts=("hooks.example",))
    monkeypatch.setattr(common, "Client", lambda settings: farm.client())
    path = manifest(farm, 2)
    assert run("run", path).exit_code == 0
    again = run("run", path, "--out", "other", "--webhook", "https://hooks.example/run")
    assert again.exit_code == 2 and "another webhook" in again.stderr


def test_two_processes_do_not_write_one_run(farm, run):
    path = manifest(farm, 2)
    farm.fail("sku-0", "NsfwContent")
    run("run", path)
    record = Path("catalogue.run/run.json").read_bytes()
    handle = os.open("catalogue.run", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for more in ([], ["--resume"], ["--retry-failed"]):
        done = run("run", path, *more)
        assert done.exit_code == 2 and "Another process" in done.stderr
    assert Path("catalogue.run/run.json").read_bytes() == record  # and nothing was tried again
    os.close(handle)
    assert run("run", path, "--resume").exit_code == 1
    assert run("run", path, "--retry-failed").exit_code == 0


def test_a_run_may_be_told_of(farm, monkeypatch, run):
    path, url = manifest(farm, 3), "https://hooks.example/run"
    assert "UrlNotAllowed" in run("run", path, "--webhook", url).stderr and not Path("catalogue.run").exists()
    allowed = FakeFarm(webhook_hosts=("hooks.example",))
    monkeypatch.setattr(common, "Client", lambda settings: allowed.client())
    path = manifest(allowed, 3)
    assert run("run", path, "--webhook", url, "--sample", 1).exit_code == 0
    assert run("run", path, "--resume").exit_code == 0
    footers = allowed.client().index.batches._shared.footers.values()
    assert [(footer.jobs, footer.webhook_url) for footer in footers] == [(1, url), (2, url)]


@pytest.mark.parametrize("option", [("--sample", 1), ("--key", "k"), ("--webhook", "https://hooks.example/")])
def test_what_a_run_was_begun_with_is_not_changed_later(run, option, monkeypatch):
    farm = FakeFarm(webhook_hosts=("hooks.example",))
    monkeypatch.setattr(common, "Client", lambda settings: farm.client())
    path = manifest(farm, 2)
    run("run", path)
    for how in ("--resume", "--retry-failed"):
        done = run("run", path, how, *option)
        assert done.exit_code == 2 and option[0] in done.stderr
