"""The largest picture that is allowed, from its file to its receipt, in a worker of its own: what memory that takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from imagecodecs import png_encode

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

SIDE = 10_000  # 100 megapixels, FARM_MAX_IMAGE_PIXELS' default

# What the worker does with a job, but for the model; and the most that it and its decoding process ever held.
_PROGRAM = """
import json, sys
from pathlib import Path
from PIL import Image
from worker import images

def peak(process):
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

asked = json.loads(sys.argv[1])
image = Path(asked["image"]).read_bytes()
mask = Path(asked["mask"]).read_bytes() if asked["mask"] else None
source = images.decode(image, mask, polarity="white_edits", max_pixels=10**8, output_format=asked["output"])
region = images.cut(source, (512, 512), padding=asked["padding"], grow=5)
picture = images.paste(source, region, Image.new("RGB", (512, 512), "red"), feather_px=4, preserve=True)
written = images.encode(picture, asked["output"], 95)
receipt = images.receipt(source, written, region)
(decoder,) = Path("/proc/thread-self/children").read_text().split()
print(json.dumps({"worker": peak("self"), "decoder": peak(decoder), "written": len(written), **receipt.model_dump()}))
"""


def _ramps(channels: int, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """[SIDE, SIDE, channels]: ramps with a grain in the lowest bits, as a photograph has it."""
    ramp = (np.arange(SIDE) // 64 % 200 + 20).astype(dtype)
    grain = np.random.default_rng(0).integers(0, 4, SIDE, dtype=np.uint8).astype(dtype)
    samples = np.empty((SIDE, SIDE, channels), dtype)
    for channel in range(channels):
        samples[..., channel] = ramp[:, None] + np.roll(grain, 1000 * channel)[None, :]
    return samples


@pytest.mark.parametrize(
    ("channels", "bits", "masked", "padding", "output", "worker", "decoder"),
    [
        (3, 8, True, 32, "png", 0.95, 0.6),  # one more copy of the picture would be 0.3 GB
        (3, 8, True, None, "tiff", 0.85, 0.65),
        (4, 8, False, None, "png", 1.2, 0.6),
        (3, 16, True, 32, "png", 1.6, 1.0),
    ],
    ids=["its surroundings", "whole", "beneath", "16 bits"],
)
def test_a_hundred_megapixels_are_edited_in_bounded_memory(
    tmp_path: Path, channels: int, bits: int, masked: bool, padding: int | None, output: str, worker: float,
    decoder: float,
) -> None:  # fmt: skip
    """`worker` and `decoder`: the most, in GB. README.md of `worker/images/` has what was measured."""
    samples = _ramps(channels, np.uint8 if bits == 8 else np.uint16)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[4000:4700, 5000:5900] = 255
    if channels == 4:
        samples[..., 3] = 255 - mask
    asked = {"image": str(tmp_path / "image.png"), "mask": None, "padding": padding, "output": output}
    Path(asked["image"]).write_bytes(png_encode(samples, level=1))
    if masked:
        asked["mask"] = str(tmp_path / "mask.png")
        Path(asked["mask"]).write_bytes(png_encode(mask, level=1))
    del samples, mask
    done = subprocess.run([sys.executable, "-c", _PROGRAM, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["max_abs_diff_outside"] == 0 and found["pixels_outside"] == SIDE**2 - 700 * 900
    assert found["worker"] < worker * 1e9 and found["decoder"] < decoder * 1e9, found
