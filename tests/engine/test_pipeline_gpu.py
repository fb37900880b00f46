"""On a CUDA device: the same picture from the same seed as on the CPU, and requests that change devices."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_same_latents, generator, run
from tests.engine.pictures import hole, picture
from worker.engine.request import Request

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    for flag in flags:
        flag.allow_tf32 = False
    yield
    for flag, value in zip(flags, before, strict=True):
        flag.allow_tf32 = value


@pytest.fixture(scope="module", params=["inpaint", "plain", "distilled", "asymmetric"])
def pipes(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return tiny_checkpoints.load_ours(request.param).to("cuda"), tiny_checkpoints.ours(request.param)


@pytest.mark.parametrize("arguments", [{}, {"strength": 0.6, "eta": 0.5}, {"guidance_scale": 1.0, "seed": [1, 2]}])
def test_a_seed_means_one_picture(pipes: tuple[Any, Any], arguments: dict[str, Any]) -> None:
    count = {"num_images_per_prompt": 2} if isinstance(arguments.get("seed"), list) else {}
    on_cuda, on_cpu = (run(pipe, {"output_type": "latent", **arguments, **count}) for pipe in pipes)
    assert on_cuda.device.type == "cuda"
    assert_same_latents(on_cuda.cpu(), on_cpu, 1e-3)


def test_a_request_changes_devices(pipes: tuple[Any, Any]) -> None:
    cuda, cpu = pipes
    call = {"prompt": "a", "image": picture(), "mask_image": hole(), "num_inference_steps": 4, "output_type": "pt"}
    whole = cpu.prepare_request(**call, generator=generator())
    moved = cuda.prepare_request(**call, generator=generator())
    for step in range(4):
        (whole,) = cpu.denoise_step([whole])
        (moved,) = (cpu if step % 2 else cuda).denoise_step([moved])
        moved = Request.from_bytes(moved.to_bytes(), "cuda" if step % 2 else "cpu")
    assert_same_latents(moved.latents.cpu(), whole.latents, 1e-3)
    assert (cuda.finish_request(moved).images.cpu() - cpu.finish_request(whole).images).abs().max() < 2 / 255
