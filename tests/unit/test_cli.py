"""The commands' manners: one line, a code, no traceback."""

import json
import subprocess
import sys

import pytest


def run(*arguments, stdin="", **environment):
    import os

    return subprocess.run(
        [sys.executable, "-m", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


JOB = json.dumps({"image": "file:///x/a.png", "mask": "file:///x/m.png"})


def test_without_redis_one_clear_line(tmp_path):
    place = f"file://{tmp_path}"
    job = JOB.replace("file:///x", place)
    done = run("producer", "submit", "-", stdin=job, FARM_REDIS_URL="redis://127.0.0.1:1/0", FARM_STORE=place)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "QueueUnavailable" in done.stderr and "FARM_REDIS_URL" in done.stderr


@pytest.mark.parametrize(
    ("stdin", "environment", "word"),
    [
        ("{", {}, "JSON"),
        ('{"image": "file:///a", "sede": 1}', {}, "did you mean 'seed'"),
        (JOB, {"FARM_STORE": ""}, "FARM_STORE"),
        (JOB, {"FARM_STORE": "ftp://x"}, "ftp"),
        (JOB, {"FARM_LEASE_SECONDS": "soon"}, "FARM_LEASE_SECONDS"),
    ],
)
def test_a_mistake_is_told_in_one_line(stdin, environment, word):
    done = run("producer", "submit", "-", stdin=stdin, **environment)
    assert done.returncode == 2
    assert word in done.stderr
    assert "Traceback" not in done.stderr and done.stderr.count("\n") == 1


def test_a_worker_without_redis_says_so(tmp_path):
    done = run("worker", "run", FARM_REDIS_URL="redis://127.0.0.1:1/0", FARM_STORE=f"file://{tmp_path}")
    assert done.returncode == 2
    assert "QueueUnavailable" in done.stderr and "Traceback" not in done.stderr


HEAVY = {
    "torch", "transformers", "safetensors", "numpy", "celery", "kombu", "boto3", "botocore", "PIL", "pyarrow",
    "skimage", "prometheus_client", "rich", "click", "sqlite3", "worker", "redis", "opentelemetry",
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "may"),
    [
        ("import producer", set()),
        ("from producer.cli import main", {"click"}),
        ("from producer.cli import main; main.get_command(None, 'status')", {"click", "rich"}),
        ("import producer.testing", {"PIL"}),
    ],
)
def test_an_import_brings_nothing_heavy(code, may):
    told = f"{code}\nimport sys; print(sorted({HEAVY!r} & {{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True)
    assert set(json.loads(done.stdout.replace("'", '"'))) <= may, done.stderr


def test_convert_makes_safetensors_of_a_pickle(tmp_path):
    import torch
    from safetensors.torch import load_file

    torch.save({"state_dict": {"a": torch.ones(2)}}, tmp_path / "model.ckpt")
    done = run("worker", "convert", str(tmp_path / "model.ckpt"), str(tmp_path / "model.safetensors"))
    assert done.returncode == 0, done.stderr
    assert load_file(tmp_path / "model.safetensors")["a"].tolist() == [1, 1]
