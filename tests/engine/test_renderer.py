"""The worker's renderer on a small checkpoint: what one job brings is gone before the next."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from farm.config import load_settings
from farm.errors import FarmError, Misconfigured, WorkerFatal
from farm.schemas import InpaintJob
from tests.engine import ip_adapter_files
from worker.assets import Asset
from worker.engine.errors import EngineError
from worker.renderer import WarmRenderer
from worker.runner import RenderRequest

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.new("L", (64, 64), 255)


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint):
    folder = tiny_checkpoint(kind="sd2", image_encoder=True)
    return WarmRenderer(load_settings(model_path=folder, device="cpu", size_buckets=["64x64"]))


def render(renderer, *, seed=0, steps=2, ip_adapter=None, loras=(), **fields):
    job = InpaintJob(image="s3://photos/b", num_inference_steps=steps, **fields)
    request = RenderRequest(job, IMAGE, MASK, seed, lambda: None, loras, (), ip_adapter)
    return [np.asarray(image) for image in renderer.render(request).images]


def ip_adapter_bytes(renderer):
    torch.manual_seed(0)
    unet, encoder = renderer._pipe.unet, renderer._pipe.image_encoder
    inside = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    pair = ip_adapter_files.groups(
        ip_adapter_files.plain(encoder.config.projection_dim), [layer.to_k.out_features for layer in inside]
    )
    return save({name: tensor.contiguous() for name, tensor in ip_adapter_files.flat(pair).items()})


def test_warm_up_renders_every_bucket(renderer):
    renderer.warm_up()
    assert renderer.progress() > 0


def test_an_ip_adapter_paints_its_own_job_only(renderer):
    data = ip_adapter_bytes(renderer)
    ref = InpaintJob(
        image="s3://photos/b", ip_adapter={"path": "s3://photos/ip", "image": "s3://photos/c", "scale": 0.8}
    ).ip_adapter
    asset = Asset("0" * 64, renderer.read_ip_adapter(data), len(data), "remote")
    before = render(renderer)
    with_it = render(renderer, ip_adapter=(ref, asset, IMAGE.rotate(90)))
    other_picture = render(renderer, ip_adapter=(ref, asset, Image.new("RGB", (64, 64), "red")))
    assert (before[0] != with_it[0]).any() and (with_it[0] != other_picture[0]).any()
    assert (render(renderer)[0] == before[0]).all()


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde", "lcm"])
def test_each_picture_of_a_job_is_the_picture_of_its_own_seed(renderer, scheduler):
    both = render(renderer, seed=5, num_images_per_prompt=2, scheduler=scheduler)
    alone = render(renderer, seed=6, scheduler=scheduler)
    assert np.abs(both[1].astype(int) - alone[0].astype(int)).max() <= 1


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a marble table"},
        {"negative_prompt": "a cup"},
        {"guidance_scale": 1.0},
        {"strength": 0.5, "steps": 4},
        {"steps": 3},
        {"scheduler": "unipc"},
        {"eta": 1.0},
        {"clip_skip": 1},
        {"seed": 1},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_every_field_of_a_job_reaches_the_pixels(renderer, fields):
    base = {"prompt": "a cup on a table", "negative_prompt": "a hat"}
    assert (render(renderer, **base)[0] != render(renderer, **{**base, **fields})[0]).any()


@pytest.mark.parametrize("data", [b"", b"\x80\x04K\x01.", b"PK\x03\x04...."])
def test_what_is_no_weights_file_is_refused(renderer, data):
    for read in (renderer.read_lora, renderer.read_embedding, renderer.read_ip_adapter):
        with pytest.raises((FarmError, EngineError)) as caught:
            read(data)
            raise AssertionError("accepted")
        assert caught.value.code in ("UnsafeWeightsFormat", "LoraInvalid", "EmbeddingInvalid", "CheckpointInvalid"), (
            read
        )


def test_a_device_that_failed_ends_the_worker(renderer, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nmore words")

    monkeypatch.setattr(renderer._pipe.unet, "forward", fail)
    with pytest.raises(WorkerFatal, match=r"illegal memory access was encountered$"):
        render(renderer)


@pytest.mark.parametrize(
    ("settings", "word"),
    [({}, "FARM_MODEL_PATH"), ({"device": "cuda"}, "CUDA"), ({"device": "moon"}, "moon"), ({"dtype": "int8"}, "int8")],
)
def test_a_worker_set_up_wrongly_says_so(tiny_checkpoint, settings, word):
    path = {"model_path": tiny_checkpoint(kind="sd2", image_encoder=True)} if settings else {}
    with pytest.raises(Misconfigured, match=word):
        WarmRenderer(load_settings(**path, **settings))
