"""The other `farm` commands against a farm in memory: what each says, and its exit code."""

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from producer.cli import COMMANDS, main
from producer.manifest import Manifest
from tests.unit.commands.words import last, manifest


def test_help_lists_every_command_and_each_has_its_own(run):
    listed = run("--help").stdout
    assert "...\n" not in listed.partition("Commands:")[2], "a sentence is cut off"
    for name in COMMANDS:
        assert f"  {name} " in listed
        assert run(name, "--help").exit_code == 0


def test_every_command_takes_json():
    commands = [main.get_command(None, name) for name in COMMANDS]
    for command in commands:
        for one in getattr(command, "commands", {"": command}).values():
            assert "--json" in [option for given in one.params for option in given.opts], one.name


def test_what_was_submitted_is_watched_by_its_address(farm, run):
    job = {"image": farm.photo("a.png"), "mask": farm.mask("m.png"), "custom_id": "a"}
    Path("job.json").write_text(json.dumps(job))
    address = run("submit", "job.json").stdout.strip()
    assert address.endswith("/a")
    assert "succeeded" in run("status", address).stdout
    assert last(run("watch", address, "--json").stdout)["result"]["custom_id"] == "a"
    assert last(run("status", address.split("/")[0], "--json").stdout)["status"] == "succeeded"
    assert run("cancel", address).stdout.strip().endswith("succeeded")
    assert last(run("submit", "job.json", "--wait", "5").stdout)["status"] == "succeeded"
    farm.fail("a", "NsfwContent")
    failed = run("submit", "job.json", "--wait", "5")
    assert failed.exit_code == 1 and "NsfwContent" in failed.stderr and last(failed.stdout)["status"] == "failed"


def test_a_batch_is_steered(farm, run):
    farm.auto = False
    client = farm.client()
    farm.fail("sku-1", "NsfwContent", times=2)
    batch = client.submit_batch(Manifest(manifest(farm, 4)))
    assert last(run("pause", batch.id, "--json").stdout) == {"batch_id": batch.id, "paused": True}
    assert "(paused)" in run("status", batch.id).stdout
    run("resume", batch.id)
    farm.work()
    done = run("watch", batch.id, "--json", "--price", "1800")
    assert done.exit_code == 1
    told = last(done.stdout)
    assert (told["failures"], told["images"], told["cost"]) == ({"NsfwContent": 1}, 3, 3.0)
    assert "tried again: 1" in run("retry-failed", batch.id, "--code", "NsfwContent").stdout
    farm.work()
    costs = last(run("status", batch.id, "--cost", "--json").stdout)["costs"]
    assert costs["by_tenant"]["default"]["gpu_seconds"] == 6.0 and costs["by_lora"]["(none)"]["images"] == 3
    lines = run("results", batch.id, "--format", "openai").stdout.splitlines()
    assert [json.loads(line)["error"] and json.loads(line)["error"]["code"] for line in lines] == [
        None, "NsfwContent", None, None,
    ]  # fmt: skip
    other = client.submit_batch(Manifest(manifest(farm, 2, seed=9)))
    assert "canceled" in run("cancel", other.id).stdout


def test_check_says_what_a_worker_would(farm, run):
    job = {"image": farm.photo("a.png"), "mask": farm.mask("m.png")}
    Path("job.json").write_text(json.dumps(job))
    assert "would take" in run("check", "job.json").stdout
    Path("job.json").write_text(json.dumps({**job, "mask": farm.mask("s.png", (20, 20))}))
    bad = run("check", "job.json", "--json")
    assert bad.exit_code == 1 and json.loads(bad.stdout)["code"] == "MaskSizeMismatch"
    word = farm.put("word.safetensors", safetensors.numpy.save({"<brand>": np.ones((1, 4), np.float32)}))
    for pinned, code in ((None, 0), ("0" * 64, 1)):  # every file is read whole, not only a LoRA's
        Path("job.json").write_text(json.dumps({**job, "embeddings": [{"path": word, "sha256": pinned}]}))
        assert run("check", "job.json").exit_code == code
    assert "LoraHashMismatch" in run("check", "job.json").stdout
    data = farm.store.get(job["image"], max_bytes=10**6).data
    Path("photo.jpg").write_bytes(data)
    assert "PNG, 96×64 px" in (good := run("check", "photo.jpg")).stdout and "its bytes count" in good.stdout
    Path("cut.png").write_bytes(data[: len(data) // 2])
    assert "ImageTruncated" in run("check", "cut.png").stderr
    Path("rows.jsonl").write_text("{}")
    assert "--dry-run" in run("check", "rows.jsonl").stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rum"], "did you mean 'run'?"),
        (["nothing-like-it"], "No such command"),
        (["run", "a.jsonl", "--deep"], "--dry-run"),
        (["run"], "Missing argument"),
        (["run", "none.csv"], "no manifest"),
        (["status", "nobody"], "no batch or job"),
        (["submit", "none.json"], "none.json"),
        (["run", "a.jsonl", "--sample", "0"], "--sample"),
        (["lora", "weights.bin"], "pickle"),
    ],
)
def test_a_mistake_is_one_line(run, arguments, words):
    done = run(*arguments)
    assert done.exit_code == 2 and done.stdout == ""
    assert words in done.stderr and done.stderr.startswith("farm: ") and done.stderr.count("\n") == 1
    told = json.loads(run(*arguments, "--json").stderr)
    assert set(told["error"]) == {"code", "message"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_for_the_shell(run, shell):
    script = run("completion", shell).stdout
    assert "_FARM_COMPLETE" in script and f"{shell}_complete" in script
