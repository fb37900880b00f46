"""Checksums notice what changes a weight, and say nothing of what a swap does and takes back."""

import pytest
import torch
from safetensors.torch import save

from farm.errors import WorkerFatal
from farm.schemas import InpaintJob
from tests.engine.renderer_bench import lora_asset, make_renderer, make_request, pixels
from worker.assets import Asset
from worker.weight_guard import WeightGuard, checksum

DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8], ids=str
)
EVERYTHING = 1 << 60  # bytes


@DTYPES
@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 5), (600, 601)], ids=str)
def test_a_checksum_notices_one_bit_anywhere(dtype, shape):
    torch.manual_seed(0)
    tensor = (torch.randn(shape) * 100).to(dtype)
    before = checksum(tensor)
    assert checksum(tensor.clone()) == before
    flat = tensor.reshape(-1).view(torch.uint8)
    for place in {0, len(flat) // 2, len(flat) - 1}:
        for bit in (1, 128):
            flat[place] ^= bit
            assert checksum(tensor) != before, place
            flat[place] ^= bit
    assert checksum(tensor) == before


def test_a_checksum_notices_minus_zero_places_and_kinds():
    tensor = torch.arange(1 << 20, dtype=torch.float32)
    swapped = tensor.clone()
    swapped[[3, 700_000]] = swapped[[700_000, 3]]
    assert checksum(tensor) != checksum(swapped)
    assert checksum(tensor) != checksum(tensor.view(1024, 1024))
    assert checksum(torch.zeros(4)) != checksum(-torch.zeros(4))
    assert checksum(torch.zeros(4)) != checksum(torch.zeros(4, dtype=torch.int32))


def test_a_checksum_goes_by_the_values_order_wherever_they_lie():
    tensor = torch.randn(4, 3, 5, 5)
    assert checksum(tensor.to(memory_format=torch.channels_last)) == checksum(tensor)
    block = torch.cat([torch.zeros(3), tensor.flatten()])
    assert checksum(block[3:].view(4, 3, 5, 5)) == checksum(tensor), "a slice whose bytes begin between two words"


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint()


@pytest.fixture
def renderer(folder):
    return make_renderer(folder, weight_check_swaps=1)


def everything(renderer) -> list[str]:
    return renderer._guard.check(EVERYTHING)


def test_jobs_leave_no_drift(renderer):
    """With LoRAs on, off, and on again; words learnt and forgotten."""
    first, second = lora_asset(renderer, 0), lora_asset(renderer, 1)
    embedding = save({"emb_params": torch.randn(2, 32)})
    ref = InpaintJob(
        image="s3://photos/i", embeddings=[{"path": "s3://photos/e.safetensors", "token": "<brand>"}]
    ).embeddings[0]
    word = Asset("0" * 64, renderer.read_embedding(embedding), len(embedding), "ram")
    for loras in [(first,), (first, second), (), (second,)]:
        renderer.render(
            make_request(loras=loras, embeddings=((ref, word),), prompt="a <brand> cup", num_inference_steps=1)
        )
        assert everything(renderer) == []


PARTS = ["unet.conv_in.weight", "unet.conv_norm_out.bias", "vae.decoder.conv_out.weight", "text_encoder"]


@pytest.mark.parametrize("part", PARTS)
def test_a_weight_that_changed_is_named(renderer, part):
    name = next(n for n in renderer._guard._order if n.startswith(part))
    module, _, path = name.partition(".")
    weight = getattr(renderer._pipe, module).get_parameter(path)
    with torch.no_grad():
        weight.view(-1)[0] += 1
    assert everything(renderer) == [name]
    with torch.no_grad():
        weight.view(-1)[0] -= 1


def test_the_copy_that_a_merged_weight_is_restored_from_is_looked_at(renderer):
    renderer.render(make_request(loras=(lora_asset(renderer),), num_inference_steps=1))
    name, copy = next(iter(renderer.engine.merger._pristine.items()))
    with torch.inference_mode():  # in which a render made it
        copy.view(-1)[0] += 1
    assert [n.removesuffix(".weight") for n in everything(renderer)] == [name.replace("text_model.", "")]


def test_a_weight_that_is_gone_is_named(renderer):
    renderer._pipe.unet.conv_norm_out.bias = None
    assert everything(renderer) == ["unet.conv_norm_out.bias"]


def test_drift_ends_the_worker_before_it_paints(renderer):
    told, steps = [], []
    renderer.on_broken = told.append
    request = make_request(loras=(lora_asset(renderer),), on_step=lambda: steps.append(1))
    with torch.no_grad():
        renderer._pipe.vae.decoder.conv_out.weight.view(-1)[0] += 1
    with pytest.raises(WorkerFatal, match=r"vae\.decoder\.conv_out\.weight"):
        renderer.render(request)
    assert told == [renderer.broken] and not steps


def test_samples_take_turns_until_all_were_looked_at(renderer):
    guard, last = renderer._guard, renderer._guard._order[-1]
    module, _, path = last.partition(".")
    with torch.no_grad():
        getattr(renderer._pipe, module).get_parameter(path).view(-1)[0] += 1
    looks = [guard.check(sample_bytes=100_000)]
    while not looks[-1] and len(looks) < 1000:
        looks.append(guard.check(sample_bytes=100_000))
    assert looks[-1] == [last] and len(looks) > 3


@pytest.mark.parametrize(("every", "looks"), [(0, 0), (1, 6), (3, 2)])
def test_a_look_follows_every_nth_swap(renderer, every, looks, monkeypatch):
    guard = WeightGuard(renderer._pipe, renderer.engine.merger, every=every)
    made = []
    monkeypatch.setattr(guard, "check", lambda: made.append(1) or [])
    for _ in range(6):
        guard.swapped()
    assert len(made) == looks


def test_no_swap_no_look(renderer, monkeypatch):
    monkeypatch.setattr(renderer._guard, "check", lambda: pytest.fail("looked"))
    assert pixels(renderer.render(make_request(num_inference_steps=1)))
