"""The demo's random-weight model: the real layout, the same bytes twice, pictures with colour, LoRAs that show."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPTokenizer

from producer.photos import BACKDROPS
from worker.demo import vocabulary
from worker.demo.checkpoint import LORAS, make_checkpoint, make_loras
from worker.engine import StableDiffusionInpaintPipeline
from worker.engine.errors import InvalidParameter


def digests(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `checkpoint/` and `loras/`, as the demo makes it."""
    folder = tmp_path_factory.mktemp("demo")
    make_checkpoint(folder / "checkpoint", seed=0)
    make_loras(folder / "loras", folder / "checkpoint", seed=0)
    return folder


@pytest.fixture(scope="module")
def ours(model: Path) -> StableDiffusionInpaintPipeline:
    return quiet(StableDiffusionInpaintPipeline.from_pretrained(model / "checkpoint"))


@pytest.fixture(scope="module")
def theirs(model: Path) -> diffusers.StableDiffusionInpaintPipeline:
    load = diffusers.StableDiffusionInpaintPipeline.from_pretrained
    return quiet(load(model / "checkpoint", safety_checker=None, local_files_only=True))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def render(pipe, *, prompt: str = BACKDROPS[0], seed: int = 0, side: int = 96) -> np.ndarray:
    """A picture [side, side, 3] in 0…1, edited everywhere but in its middle."""
    mask = Image.new("L", (side, side), 255)
    mask.paste(0, (side // 3, side // 3, 2 * side // 3, 2 * side // 3))
    image = Image.merge("RGB", [Image.linear_gradient("L").resize((side, side))] * 3)
    generator = torch.Generator().manual_seed(seed)
    options = {"num_inference_steps": 4, "height": side, "width": side, "output_type": "np"}
    return pipe(prompt=prompt, image=image, mask_image=mask, generator=generator, **options).images[0]


def test_equal_seeds_give_equal_bytes_and_other_seeds_others(model: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        make_checkpoint(tmp_path / f"{seed}" / "checkpoint", seed=seed)
        make_loras(tmp_path / f"{seed}" / "loras", tmp_path / f"{seed}" / "checkpoint", seed=seed)
    assert digests(tmp_path / "0") == digests(model)
    other, weights = digests(tmp_path / "1"), [name for name in digests(model) if name.endswith(".safetensors")]
    assert len(weights) == 3 + len(LORAS)
    assert all(other[name] != digests(model)[name] for name in weights)


def test_the_layout_is_that_of_stable_diffusion_and_small(model: Path) -> None:
    checkpoint = model / "checkpoint"
    index = json.loads((checkpoint / "model_index.json").read_text())
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[0]}
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert parts == {
        "scheduler": "DDIMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    assert {path.name for path in checkpoint.iterdir() if path.is_dir()} == set(parts)
    count = 0
    for path in checkpoint.rglob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}
            count += sum(tensors.get_tensor(key).numel() for key in tensors.keys())  # noqa: SIM118 (no mapping)
            if path.parent.name == "text_encoder":
                assert all(key.startswith("text_model.") for key in tensors.keys())  # noqa: SIM118 (no mapping)
    assert 1e6 < count < 8e6


@pytest.mark.parametrize("prompt", BACKDROPS[:2])
def test_diffusers_loads_the_folder_and_paints_the_same(ours, theirs, prompt: str) -> None:
    assert theirs.unet.config.in_channels == 9 and theirs.tokenizer.model_max_length == 77
    difference = np.abs(render(ours, prompt=prompt) - render(theirs, prompt=prompt))
    assert difference.max() < 1e-3


def test_pictures_are_colourful_smooth_and_follow_prompt_and_seed(ours) -> None:
    first = render(ours)
    assert first.std(axis=(0, 1)).mean() > 0.04  # shapes
    assert (first.max(axis=2) - first.min(axis=2)).mean() > 0.08  # colour: grey has no such spread
    steps = np.abs(np.diff(first, axis=0)).mean() + np.abs(np.diff(first, axis=1)).mean()
    assert steps < first.std() / 2  # noise of this contrast steps by twice its deviation
    assert np.abs(first - render(ours, prompt=BACKDROPS[1])).mean() > 0.02
    assert np.abs(first - render(ours, seed=1)).mean() > 0.02


def test_each_lora_shows_in_the_picture_and_is_gone_afterwards(model: Path, ours) -> None:
    paths = sorted((model / "loras").glob("*.safetensors"))
    assert [path.stem for path in paths] == sorted(LORAS) and len(paths) >= 3
    plain, pictures = render(ours), []
    for path in paths:
        ours.load_lora_weights(path)
        pictures.append(render(ours))
        ours.unload_lora_weights()
    for place, picture in enumerate(pictures):
        assert np.abs(picture - plain).mean() > 0.04, paths[place].stem
        for other in pictures[:place]:
            assert np.abs(picture - other).mean() > 0.04
    assert np.array_equal(render(ours), plain)


def test_diffusers_takes_the_loras_too(model: Path, ours, theirs) -> None:
    path = model / "loras" / "cobalt.safetensors"
    for pipe in (ours, theirs):
        pipe.load_lora_weights(str(path), adapter_name="cobalt")
    try:
        assert np.abs(render(ours) - render(theirs)).max() < 2e-3
    finally:
        for pipe in (ours, theirs):
            pipe.unload_lora_weights()


def test_loras_have_their_ranks_and_fit_in_a_small_file(model: Path) -> None:
    for name, rank in LORAS.items():
        path = model / "loras" / f"{name}.safetensors"
        assert 4 <= rank <= 16 and path.stat().st_size < 1_000_000
        with safe_open(path, "pt") as tensors:
            shapes = {key: tensors.get_slice(key).get_shape() for key in tensors.keys()}  # noqa: SIM118 (no mapping)
        assert {shape[0] for key, shape in shapes.items() if key.endswith("lora_A.weight")} == {rank}


def test_a_plain_checkpoint_has_four_channels(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "plain", in_channels=4)
    pipe = quiet(StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "plain"))
    assert pipe.unet.config.in_channels == 4
    assert np.isfinite(render(pipe, side=64)).all()
    with pytest.raises(InvalidParameter, match="in_channels"):
        make_checkpoint(tmp_path / "five", in_channels=5)


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError):
        make_checkpoint(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_word_of_the_list_is_one_token_and_any_text_can_be_spelled(model: Path) -> None:
    tokenizer = CLIPTokenizer.from_pretrained(model / "checkpoint" / "tokenizer")
    words = vocabulary._WORDS.split()
    assert len(set(words)) == len(words)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    for text in ("zürich", "東京", "🎉", "a quickly made-up word"):
        ids = tokenizer(text).input_ids
        inner = ids[1:-1]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in inner and len(inner) <= len(text.encode())
    assert all(len(tokenizer(prompt).input_ids) <= 20 for prompt in BACKDROPS)
