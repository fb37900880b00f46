"""Pictures as prompts: plain and plus IP-Adapters, alone and together, from pictures and from embeddings."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity, relative_error, run
from tests.engine.conftest import VISION
from tests.engine.ip_adapter_files import flat, groups, plain, plus
from tests.engine.pictures import hole, picture
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.callbacks import IPAdapterScaleCutoffCallback
from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.request import Request

EMBED, HIDDEN = VISION["projection_dim"], VISION["hidden_size"]
PLAIN, PLUS = "plain.safetensors", "plus.safetensors"


def write(path: Path, unet: Any, projection: dict[str, torch.Tensor]) -> None:
    names = [name.removesuffix(".processor") for name in unet.attn_processors if name.endswith("attn2.processor")]
    widths = [unet.get_submodule(name).to_k.out_features for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(flat(groups(projection, widths)), path)


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Callable[..., Path]) -> Path:
    return tiny_checkpoint(kind="sd2", image_encoder=True)


@pytest.fixture(scope="module")
def adapters(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters")
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(checkpoint)
    torch.manual_seed(1)
    write(folder / "models" / PLAIN, theirs.unet, plain(EMBED))
    write(folder / "models" / PLUS, theirs.unet, plus(HIDDEN))
    theirs.image_encoder.save_pretrained(folder / "models" / "image_encoder")
    theirs.image_encoder.save_pretrained(folder / "elsewhere" / "image_encoder")
    return folder


@pytest.fixture(scope="module")
def both(checkpoint: Path) -> tuple[Any, Any]:
    classes = StableDiffusionInpaintPipeline, diffusers.StableDiffusionInpaintPipeline
    pipes = tuple(cls.from_pretrained(checkpoint) for cls in classes)
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    return pipes


@pytest.fixture
def pipes(both: tuple[Any, Any]) -> Iterator[tuple[Any, Any]]:
    encoder = both[1].image_encoder
    yield both
    for pipe in both:
        pipe.unload_ip_adapter()
    both[1].register_modules(image_encoder=encoder)  # diffusers drops it even if it did not come with the adapter
    assert both[0].image_encoder is not None
    assert_parity("sd2", *both, num_inference_steps=1)


@pytest.mark.parametrize("name", [PLAIN, PLUS])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_one_picture(pipes: tuple[Any, Any], adapters: Path, name: str, guidance_scale: float) -> None:
    for pipe in pipes:
        pipe.load_ip_adapter(str(adapters), subfolder="models", weight_name=name)
    arguments = {"guidance_scale": guidance_scale, "ip_adapter_image": picture(50, 40, seed=5)}
    assert_parity("sd2", *pipes, **arguments)
    for pipe in pipes:
        pipe.set_ip_adapter_scale(0.4)
    assert_parity("sd2", *pipes, **arguments, num_images_per_prompt=2)
    seen = run(pipes[0], {"output_type": "latent", **arguments})
    for pipe in pipes:
        pipe.set_ip_adapter_scale(0.0)
    assert relative_error(run(pipes[0], {"output_type": "latent", **arguments}), seen) > 1e-3


def test_several_adapters_and_pictures(pipes: tuple[Any, Any], adapters: Path) -> None:
    for pipe in pipes:
        pipe.load_ip_adapter(str(adapters), subfolder="models", weight_name=[PLAIN, PLUS])
        pipe.set_ip_adapter_scale([0.7, 0.3])
    images = [[picture(seed=1), picture(seed=2)], picture(seed=3)]
    assert_parity("sd2", *pipes, ip_adapter_image=images, prompt=["a", "b"])
    for pipe in pipes:
        pipe.set_ip_adapter_scale([{"down": {"block_0": [0.0, 1.0]}}, {"up": {"block_1": 0.5}, "mid": 1.0}])
    assert_parity("sd2", *pipes, ip_adapter_image=images)
    for pipe in pipes:
        with pytest.raises(ValueError, match=r"scale"):
            pipe.set_ip_adapter_scale(0.5)
    silenced = {"callback_on_step_end": IPAdapterScaleCutoffCallback(None, 0), "output_type": "latent"}
    ours = run(pipes[0], {"ip_adapter_image": images, **silenced})
    assert relative_error(ours, run(pipes[0], {"ip_adapter_image": images, "output_type": "latent"})) > 1e-3


@pytest.mark.parametrize("name", [PLAIN, PLUS])
@pytest.mark.parametrize("guidance_scale", [7.5, 1.0])
def test_embeddings(pipes: tuple[Any, Any], adapters: Path, name: str, guidance_scale: float) -> None:
    for pipe in pipes:
        pipe.load_ip_adapter(str(adapters), "models", name)
    shape = (2, EMBED) if name == PLAIN else (2, 5, HIDDEN)
    rows = 2 if guidance_scale > 1 else 1
    embeds = [torch.randn(rows, *shape, generator=torch.Generator().manual_seed(4))]
    assert_parity("sd2", *pipes, ip_adapter_image_embeds=embeds, guidance_scale=guidance_scale, prompt=["a", "b"])


def test_a_prepared_picture(pipes: tuple[Any, Any], adapters: Path) -> None:
    for pipe in pipes:
        pipe.load_ip_adapter(str(adapters), "models", PLAIN)
    side = VISION["image_size"]
    assert_parity("sd2", *pipes, ip_adapter_image=torch.randn(1, 3, side, side), num_inference_steps=2)


def test_masks_for_pictures(pipes: tuple[Any, Any], adapters: Path) -> None:
    for pipe in pipes:
        pipe.load_ip_adapter(str(adapters), "models", PLAIN)
        pipe.set_ip_adapter_scale([[0.7, 0.9]])
    boxes = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
    masks = diffusers.image_processor.IPAdapterMaskProcessor().preprocess([hole(box=box) for box in boxes], 64, 64)
    arguments = {
        "ip_adapter_image": [[picture(seed=1), picture(seed=2)]],
        "cross_attention_kwargs": {"ip_adapter_masks": [masks.reshape(1, 2, 64, 64)]},
    }
    assert_parity("sd2", *pipes, **arguments)
    request = pipes[0].prepare_request(prompt="a", image=picture(), mask_image=hole(), **arguments)
    assert torch.equal(Request.from_bytes(request.to_bytes()).ip_adapter_masks[0], request.ip_adapter_masks[0])
    pipes[0].denoise_step([request, request])


def test_requests_with_and_without_pictures_share_a_step(pipes: tuple[Any, Any], adapters: Path) -> None:
    ours = pipes[0]
    ours.load_ip_adapter(adapters, "models", PLAIN)
    calls = [{"guidance_scale": 1.0}, {"guidance_scale": 5.0, "num_images_per_prompt": 2}]
    shared = {"prompt": "a", "image": picture(), "mask_image": hole(), "ip_adapter_image": picture(seed=9)}
    seeds = [torch.Generator().manual_seed(i) for i in range(2)]
    requests = [ours.prepare_request(**shared, **c, generator=g) for c, g in zip(calls, seeds, strict=True)]
    restored = [Request.from_bytes(request.to_bytes()) for request in requests]
    together = ours.denoise_step(requests)
    for request, stepped in zip(restored, together, strict=True):
        (alone,) = ours.denoise_step([request])
        assert relative_error(stepped.latents, alone.latents) < 1e-5


@pytest.mark.parametrize(
    ("folder", "options"),
    [("models", {}), ("models", {"image_encoder_folder": "elsewhere/image_encoder"}), (None, {})],
)
def test_an_image_encoder_is_loaded_where_there_is_none(
    folder: str | None, options: dict[str, Any], adapters: Path
) -> None:
    made = []
    for pipe in (tiny_checkpoints.ours("sd2"), tiny_checkpoints.oracle("sd2")):
        bare = type(pipe)(**pipe.components)
        bare.set_progress_bar_config(disable=True)
        made.append(bare)
        if folder is None and bare is made[0]:
            bare.load_ip_adapter(adapters / "models" / PLUS, **options)
        else:
            bare.load_ip_adapter(str(adapters), "models", PLUS, **options)
        assert bare.image_encoder is not None
    assert_parity("sd2", *made, ip_adapter_image=picture(40, 60, seed=5), num_inference_steps=2)
    for pipe in made:
        pipe.unload_ip_adapter()
        assert pipe.image_encoder is None
    assert_parity("sd2", *made, num_inference_steps=1)


def test_misuse(pipes: tuple[Any, Any], adapters: Path, tmp_path: Path) -> None:
    ours = pipes[0]
    with pytest.raises(InvalidParameter, match="load_ip_adapter"):
        run(ours, {"ip_adapter_image": picture()})
    with pytest.raises(InvalidParameter, match="weight_name"):
        ours.load_ip_adapter([adapters] * 3, "models", [PLAIN, PLUS])
    with pytest.raises(CheckpointInvalid):
        ours.load_ip_adapter(adapters, "models", "nothing.safetensors")
    save_file({"unet.x": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointInvalid, match="IP-Adapter"):
        ours.load_ip_adapter(tmp_path / "lora.safetensors")
    ours.load_ip_adapter(adapters, "models", [PLAIN, PLUS])
    for field, arguments in (
        ("ip_adapter_image", {}),
        ("ip_adapter_image", {"ip_adapter_image": picture()}),
        ("ip_adapter_image", {"ip_adapter_image": [picture()] * 3}),
        ("ip_adapter_image_embeds", {"ip_adapter_image_embeds": [torch.ones(2, 1, EMBED)]}),
        ("ip_adapter_image_embeds", {"ip_adapter_image_embeds": [torch.ones(1, 1, EMBED)] * 2}),
        (
            "cross_attention_kwargs",
            {"ip_adapter_image": [picture()] * 2, "cross_attention_kwargs": {"ip_adapter_masks": 1}},
        ),
    ):
        with pytest.raises(InvalidParameter) as caught:
            run(ours, dict(arguments))
        assert caught.value.field == field
    with pytest.raises(InvalidParameter, match="scale"):
        ours.set_ip_adapter_scale([0.1, 0.2, 0.3])
    bare = type(ours)(**{**ours.components, "image_encoder": None})
    with pytest.raises(InvalidParameter, match="image encoder"):
        run(bare, {"ip_adapter_image": [picture()] * 2})
    tensors = {"image_proj": {}, "ip_adapter": {}}
    with pytest.raises(InvalidParameter, match="image_encoder_folder"):
        bare.load_ip_adapter(tensors)
