"""Four virtual devices, in a process of their own: the torch engine's pictures, and no second compilation."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.engine import tiny_checkpoints
from worker.demo.shipped import copy_model

ROOT = Path(__file__).parents[2]
# Compiling a UNet takes tens of seconds, and minutes where others have the cores.
pytestmark = [pytest.mark.full, pytest.mark.timeout(1000)]


def run(module: str, *arguments: object) -> str:
    command = [sys.executable, "-m", f"tests.engine_jax.{module}", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def judge(found: dict, kinds: int) -> None:
    assert found["devices"] == 4 and found["shape"][:2] == [4, 2]
    assert len(found["error"]) == 2 * kinds and max(found["error"].values()) <= 1e-3
    assert found["effect"] > 1e-2 and found["restored"] == 0
    # Neither a LoRA, nor taking it out, nor another number of steps compiles anything.
    assert all(count >= 1 for count in found["compiled_first"]) and len(found["compiled_first"]) == kinds
    assert found["compiled"] == [0] * (2 * kinds + 1)


def test_a_batch_over_four_devices_is_the_torch_engines_with_guidance_and_without(tmp_path):
    lora = tmp_path / "lora.safetensors"
    save_file({name: t.contiguous() for name, t in tiny_checkpoints.lora("inpaint").items()}, lora)
    judge(json.loads(run("sharded", tiny_checkpoints.folder("inpaint"), 64, lora, 5.0, 1.0).splitlines()[-1]), kinds=2)


def test_the_documentations_example_runs(tmp_path):
    copy_model(tmp_path)
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    mask = np.zeros((128, 128), np.uint8)
    mask[32:96, 32:96] = 255
    Image.fromarray(picture).save(tmp_path / "image.png")
    Image.fromarray(mask).save(tmp_path / "mask.png")
    out = tmp_path / "out"
    out.mkdir()
    run("example", tmp_path / "checkpoint", tmp_path / "image.png", tmp_path / "mask.png", out)
    one, two = (np.asarray(Image.open(path)) for path in sorted(out.iterdir()))
    assert one.shape == two.shape == (128, 128, 3)
    assert (one != two).any() and one.std() > 5  # each device drew noise of its own
