"""The model in the package: its files and their sizes, its tokenizer, and that diffusers paints the same with it."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from transformers import CLIPTokenizer

from producer.photos import BACKDROPS
from worker.cli import main
from worker.demo import ship, shipped, vocabulary
from worker.demo.scenes import make_scene
from worker.demo.scenes.looks import LOOKS
from worker.engine import StableDiffusionInpaintPipeline


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ours() -> StableDiffusionInpaintPipeline:
    return quiet(StableDiffusionInpaintPipeline.from_pretrained(shipped.CHECKPOINT))


@pytest.fixture(scope="module")
def theirs() -> diffusers.StableDiffusionInpaintPipeline:
    load = diffusers.StableDiffusionInpaintPipeline.from_pretrained
    return quiet(load(shipped.CHECKPOINT, safety_checker=None, local_files_only=True))


def render(pipe, prompt: str, shape: tuple[int, int] = (64, 64), **options) -> np.ndarray:
    """A picture [h, w, 3] in 0…1, repainted around its product."""
    scene = make_scene(3, 5, shape, mask="around")
    arguments = {"num_inference_steps": 5, "guidance_scale": 3.0, "output_type": "np", **options}
    return pipe(
        prompt=prompt,
        image=scene.image(),
        mask_image=scene.mask_image(),
        height=shape[0],
        width=shape[1],
        generator=torch.Generator().manual_seed(0),
        **arguments,
    ).images[0]


def test_it_is_small_and_complete() -> None:
    index = json.loads((shipped.CHECKPOINT / "model_index.json").read_text())
    parts = {name: value[1] for name, value in index.items() if isinstance(value, list) and value[0]}
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert parts == {
        "scheduler": "DDIMScheduler",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
    }
    assert {path.name for path in shipped.CHECKPOINT.iterdir() if path.is_dir()} == {*parts, "loras"}
    files = [path for path in shipped.CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= ship.LARGEST == 25_000_000
    loras = sorted(shipped.LORAS.glob("*.safetensors"))
    assert [path.stem for path in loras] == sorted(LOOKS) and len(loras) >= 4
    assert all(path.stat().st_size <= ship.LARGEST_LORA == 300_000 for path in loras)


def test_weights_are_float16_and_finite() -> None:
    for path in shipped.CHECKPOINT.rglob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                tensor = file.get_tensor(name)
                assert tensor.dtype == torch.float16 and tensor.isfinite().all(), (path, name)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96)])
def test_diffusers_loads_the_folder_and_paints_the_same(ours, theirs, shape: tuple[int, int]) -> None:
    assert theirs.unet.config.in_channels == 9 and theirs.tokenizer.model_max_length == 77
    for prompt in ("red gradient studio backdrop", "white marble table top, soft shadow"):
        assert np.abs(render(ours, prompt, shape) - render(theirs, prompt, shape)).max() < 1 / 255


@pytest.mark.parametrize("look", LOOKS)
def test_diffusers_loads_each_lora_and_paints_the_same(ours, theirs, look: str) -> None:
    prompt = f"plain green studio backdrop, {LOOKS[look].triggers[0]}"
    plain = render(ours, prompt)
    for pipe in (ours, theirs):
        pipe.load_lora_weights(str(shipped.LORAS / f"{look}.safetensors"), adapter_name=look)
    try:
        with_look = render(ours, prompt)
        assert np.abs(with_look - render(theirs, prompt)).max() < 1 / 255
        assert np.abs(with_look - plain).mean() > 0.02
    finally:
        for pipe in (ours, theirs):
            pipe.unload_lora_weights()
    assert np.array_equal(render(ours, prompt), plain)


def test_pictures_follow_prompt_and_seed(ours) -> None:
    red, blue = (render(ours, f"plain {colour} studio backdrop") for colour in ("red", "blue"))
    mask = make_scene(3, 5, (64, 64), mask="around").mask > 0
    assert red[mask][:, 0].mean() > blue[mask][:, 0].mean() + 0.2
    assert blue[mask][:, 2].mean() > red[mask][:, 2].mean() + 0.2


def test_the_command_writes_it_where_a_worker_loads_it(tmp_path: Path) -> None:
    run = CliRunner().invoke(main, ["demo-model", str(tmp_path / "model")])
    assert run.exit_code == 0, run.output
    copied = {p.relative_to(tmp_path / "model" / "checkpoint") for p in (tmp_path / "model" / "checkpoint").rglob("*")}
    assert {str(path) for path in copied} >= {"model_index.json", "unet/config.json", "tokenizer/vocab.json"}
    assert not {"loras", "training.json"} & {str(path) for path in copied}
    assert {path.stem for path in (tmp_path / "model" / "loras").iterdir()} == set(LOOKS)
    again = CliRunner().invoke(main, ["demo-model", str(tmp_path / "model")])
    assert again.exit_code == 2 and "another folder" in again.output


def test_a_word_of_the_list_is_one_token_and_any_text_can_be_spelled() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(shipped.CHECKPOINT / "tokenizer")
    words = vocabulary._WORDS.split()
    assert len(set(words)) == len(words)
    assert all(len(tokenizer.tokenize(word)) == 1 for word in words)
    for text in ("zürich", "東京", "🎉", "a quickly made-up word"):
        ids = tokenizer(text).input_ids
        inner = ids[1:-1]
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in inner and len(inner) <= len(text.encode())
    assert all(len(tokenizer(prompt).input_ids) <= 20 for prompt in BACKDROPS)


def test_the_tokenizer_is_the_one_that_the_vocabulary_writes(tmp_path: Path) -> None:
    vocabulary.write_tokenizer(tmp_path / "tokenizer")
    for path in (tmp_path / "tokenizer").iterdir():
        assert path.read_bytes() == (shipped.CHECKPOINT / "tokenizer" / path.name).read_bytes()
