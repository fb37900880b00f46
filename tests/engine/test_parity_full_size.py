"""Stable Diffusion 1.5 at its real size, random weights: the same latents and picture as diffusers, in no more memory.

Each pipeline runs in a process of its own, so that the peak of its memory is its own.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from tests.engine import tiny_checkpoints
from tests.engine.comparison import PICTURE_TOLERANCE, assert_same_latents

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(900),
    pytest.mark.xdist_group("full size"),  # four gigabytes are written once
]

UNET = {"sample_size": 64, "in_channels": 9, "cross_attention_dim": 768, "attention_head_dim": 8}
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}

RUN = """
import json, resource, sys
import torch
from safetensors.torch import save_file
from tests.engine.pictures import hole, picture

torch.set_num_threads(1)
folder, out, module = sys.argv[1:]
pipe = __import__(module, fromlist=["x"]).StableDiffusionInpaintPipeline.from_pretrained(folder)
pipe.set_progress_bar_config(disable=True)
side = dict(height=128, width=128)
call = dict(prompt="a red cat on a bench", negative_prompt="blurred", num_inference_steps=3, **side)
call |= dict(image=picture(**side), mask_image=hole(**side))
latents = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="latent").images
image = pipe(**call, generator=torch.Generator().manual_seed(0), output_type="pt").images
save_file({"latents": latents.contiguous(), "image": image.contiguous()}, out)
print(json.dumps({"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                   "diffusers": "diffusers" in sys.modules}))
"""


@dataclass(frozen=True)
class Run:
    """`latents` and `image` (0..1), `peak` resident bytes, and whether the process imported `diffusers`."""

    latents: torch.Tensor
    image: torch.Tensor
    peak: int
    diffusers: bool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("full-size")
    marks = {"bos_token_id": 512, "eos_token_id": 513, "pad_token_id": 513}
    diffusers.StableDiffusionInpaintPipeline(
        vae=diffusers.AutoencoderKL(**VAE).eval(),
        text_encoder=CLIPTextModel(CLIPTextConfig(**TEXT, **marks)).eval(),
        tokenizer=tiny_checkpoints.tokenizer(),
        unet=diffusers.UNet2DConditionModel(**UNET).eval(),
        scheduler=diffusers.DDIMScheduler(**tiny_checkpoints.SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(path)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def runs(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    made = {}
    for module in ("worker.engine", "diffusers"):
        out = tmp_path_factory.mktemp("runs") / "made.safetensors"
        command = [sys.executable, "-c", RUN, str(folder), str(out), module]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-2000:]
        made[module] = Run(**load_file(out), **json.loads(ran.stdout.splitlines()[-1]))
    return made


def test_latents_and_picture(runs: dict[str, Run]) -> None:
    ours, theirs = runs.values()
    assert_same_latents(ours.latents, theirs.latents)
    assert (ours.image - theirs.image).abs().max() <= PICTURE_TOLERANCE
    assert not ours.diffusers, "the engine runs without the oracle"


def test_peak_memory(runs: dict[str, Run]) -> None:
    """Of the whole process: imports, loading and two pictures."""
    ours, theirs = runs.values()
    assert ours.peak <= theirs.peak, f"{ours.peak / 1e9:.2f} GB, and diffusers {theirs.peak / 1e9:.2f} GB"
