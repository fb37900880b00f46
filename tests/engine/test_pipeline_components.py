"""The pipeline's parts: made, loaded, replaced, saved, moved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from tests.engine import ldm_files, tiny_checkpoints
from tests.engine.comparison import assert_parity, assert_same_pictures, generator, run
from tests.engine.pictures import hole, picture
from worker.engine import StableDiffusionInpaintPipeline, schedulers
from worker.engine.errors import CheckpointInvalid, InvalidParameter, NonFiniteOutput, UnsafeWeightsFormat

PARTS = [
    "vae",
    "text_encoder",
    "tokenizer",
    "unet",
    "scheduler",
    "safety_checker",
    "feature_extractor",
    "image_encoder",
]


def test_components_make_another_pipeline() -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    assert list(pipe.components) == PARTS
    assert sorted(pipe.components) == sorted(tiny_checkpoints.oracle("inpaint").components)
    twin = StableDiffusionInpaintPipeline(**pipe.components, **pipe.parameters)
    twin.set_progress_bar_config(disable=True)
    assert twin.unet is pipe.unet
    assert twin.config.requires_safety_checker is False
    assert torch.equal(run(twin, {"output_type": "latent"}), run(pipe, {"output_type": "latent"}))


def test_a_missing_safety_checker_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    StableDiffusionInpaintPipeline(**pipe.components)
    assert "safety checker" in caplog.text
    caplog.clear()
    StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False)
    assert not caplog.text


def test_parts_given_are_not_loaded(tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint(safety_checker=True)
    euler = schedulers.from_config(folder / "scheduler", _class_name="EulerDiscreteScheduler")
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, scheduler=euler, safety_checker=None)
    assert type(pipe.scheduler) is type(euler)
    assert pipe.safety_checker is None
    assert pipe.feature_extractor is not None
    assert pipe.config.requires_safety_checker is True
    whole = StableDiffusionInpaintPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    assert type(whole.safety_checker).__name__ == "StableDiffusionSafetyChecker"
    mine = run(whole, {"output_type": "pil", "num_inference_steps": 1})
    assert_same_pictures(mine, run(load_oracle(folder), {"output_type": "pil", "num_inference_steps": 1}))


def load_oracle(folder: Path) -> Any:
    pipe = diffusers.StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_without_a_text_encoder() -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    bare = StableDiffusionInpaintPipeline(**{**pipe.components, "text_encoder": None, "tokenizer": None})
    bare.set_progress_bar_config(disable=True)
    embeds = torch.randn(2, 77, 32, generator=generator())
    arguments = {"prompt": None, "prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:]}
    assert_parity("inpaint", ours=bare, **arguments)
    for refused in ({"prompt": "a"}, {"prompt": None, "prompt_embeds": embeds[:1]}):
        with pytest.raises(InvalidParameter, match="text encoder"):
            run(bare, refused)


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_what_is_saved_both_read_back(variant: str | None, tmp_path: Path) -> None:
    tiny_checkpoints.ours("plain").save_pretrained(tmp_path, variant=variant)
    again = StableDiffusionInpaintPipeline.from_pretrained(tmp_path, variant=variant)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tmp_path, variant=variant)
    for pipe in (again, theirs):
        pipe.set_progress_bar_config(disable=True)
    assert_parity("plain", ours=again)
    assert_parity("plain", ours=again, theirs=theirs)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    assert index["requires_safety_checker"] is False


def test_fused_loras_are_saved_and_others_are_not(tmp_path: Path) -> None:
    pipe = tiny_checkpoints.load_ours("inpaint")
    plain = pipe.unet.state_dict()["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"].clone()
    pipe.load_lora_weights(tiny_checkpoints.lora("inpaint"))
    merged = run(pipe, {"output_type": "latent"})
    pipe.save_pretrained(tmp_path / "base")
    assert torch.equal(run(pipe, {"output_type": "latent"}), merged), "saving changes nothing"
    assert_parity("inpaint", ours=quiet(tmp_path / "base"))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.save_pretrained(tmp_path / "fused")
    assert torch.equal(run(quiet(tmp_path / "fused"), {"output_type": "latent"}), merged)
    weights = quiet(tmp_path / "base").unet.state_dict()
    assert torch.equal(weights["mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"], plain)


def quiet(folder: Path, **options: Any) -> StableDiffusionInpaintPipeline:
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    ("arguments", "options"),
    [((torch.bfloat16,), {}), (("cpu", torch.bfloat16), {}), ((), {"dtype": torch.bfloat16, "device": "cpu"})],
)
def test_to(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    pipe = tiny_checkpoints.load_ours("inpaint")
    pipe.load_lora_weights(tiny_checkpoints.lora("inpaint"))
    assert pipe.to(*arguments, **options) is pipe
    assert {m.dtype for m in pipe.modules()} == {pipe.dtype} == {torch.bfloat16}
    assert pipe.device.type == "cpu"
    pipe.unload_lora_weights()
    assert run(pipe, {"output_type": "pt", "num_inference_steps": 1}).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((torch.float32, "cpu"), {}),
        (("cpu", torch.float32, 1), {}),
        (("cpu",), {"device": "cpu"}),
        ((torch.float32,), {"dtype": torch.float32}),
        ((), {"dvice": "cpu"}),
    ],
)
def test_to_refuses(arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"to|dvice"):
        tiny_checkpoints.ours("inpaint").to(*arguments, **options)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["inpaint", "plain"])
def test_half_precision_equals_diffusers(kind: str, dtype: torch.dtype) -> None:
    """Three digits leave no room for another order of operations: the two are the same, not merely near."""
    ours = quiet(tiny_checkpoints.folder(kind), torch_dtype=dtype)
    theirs = diffusers.StableDiffusionInpaintPipeline.from_pretrained(tiny_checkpoints.folder(kind), dtype=dtype)
    theirs.set_progress_bar_config(disable=True)
    assert_parity(kind, ours, theirs, num_inference_steps=3, strength=0.7, eta=0.5)


def test_a_dtype_for_each_part() -> None:
    pipe = quiet(tiny_checkpoints.folder("inpaint"), dtype={"vae": torch.bfloat16, "default": torch.float32})
    assert (pipe.vae.dtype, pipe.unet.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    with pytest.raises(InvalidParameter, match="torch_dtype"):
        quiet(tiny_checkpoints.folder("inpaint"), torch_dtype="half")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"use_safetensors": False}, UnsafeWeightsFormat),
        ({"safety_cheker": None}, InvalidParameter),
        ({"variant": "fp16"}, CheckpointInvalid),
    ],
)
def test_options_that_do_not_exist(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        quiet(tiny_checkpoints.folder("inpaint"), **options)
    with pytest.raises(InvalidParameter):
        tiny_checkpoints.ours("inpaint").save_pretrained("/nowhere", safe_serialization=False)


@pytest.mark.parametrize("channels", [5, 8])
def test_a_unet_of_other_channels_is_refused(channels: int, tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint(channels)
    for pipe in (quiet(folder), load_oracle(folder)):
        with pytest.raises(ValueError, match="input channels"):
            run(pipe, {})


@pytest.mark.parametrize(("version", "side"), [("0.8.1", 512), ("0.9.0", 64), ("0.42.1", 64)])
def test_the_size_where_none_is_given(version: str, side: int, tmp_path: Path) -> None:
    """Files of before 0.9.0 say a sample size that is too small, and mean 64."""
    tiny_checkpoints.ours("inpaint").save_pretrained(tmp_path)
    path = tmp_path / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_diffusers_version": version}))
    pipes = quiet(tmp_path), load_oracle(tmp_path)
    for pipe in pipes:
        latents = run(pipe, {"num_inference_steps": 1, "output_type": "latent", "guidance_scale": 1.0})
        assert latents.shape[-1] * 8 == side


def test_nonsense_from_the_models_is_an_error() -> None:
    pipe = tiny_checkpoints.load_ours("inpaint")
    pipe.vae.decoder.conv_out.bias.data[0] = float("nan")
    with pytest.raises(NonFiniteOutput, match="VAE"):
        run(pipe, {"num_inference_steps": 1})
    pipe.unet.conv_out.bias.data[0] = float("inf")
    with pytest.raises(NonFiniteOutput, match="latents"):
        run(pipe, {"num_inference_steps": 1})


def test_the_progress_bar_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = StableDiffusionInpaintPipeline(**tiny_checkpoints.ours("inpaint").components)
    arguments = {"prompt": "a", "image": picture(), "mask_image": hole(), "num_inference_steps": 5, "strength": 0.6}
    pipe(**arguments)
    assert "3/3" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(**arguments)
    assert not capsys.readouterr().err
    assert list(pipe.progress_bar([1, 2])) == [1, 2]
    with pytest.raises(InvalidParameter):
        pipe.progress_bar()


@pytest.mark.parametrize("kind", ["inpaint", "plain"])
def test_an_original_single_file(kind: str, tmp_path: Path) -> None:
    source = tiny_checkpoints.folder(kind)
    path = tmp_path / "model.safetensors"
    ldm_files.write(source, path)
    pipe = StableDiffusionInpaintPipeline.from_single_file(path, config=source, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    assert_parity(kind, ours=pipe)
    parts = {"tokenizer": pipe.tokenizer, "scheduler": pipe.scheduler, "safety_checker": None}
    half = StableDiffusionInpaintPipeline.from_single_file(path, config=source, torch_dtype=torch.bfloat16, **parts)
    assert half.unet.dtype == torch.bfloat16
    assert half.scheduler == pipe.scheduler
    for options, error in (({}, InvalidParameter), ({"config": source, "original_config": "x"}, InvalidParameter)):
        with pytest.raises(error, match=r"config"):
            StableDiffusionInpaintPipeline.from_single_file(path, **options)
