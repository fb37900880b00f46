"""What the compiled program is given, and what it is not."""

import jax
import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine import tiny_checkpoints
from worker.engine.errors import CheckpointInvalid, FeatureUnavailable, InvalidParameter
from worker.engine.schedulers import from_config
from worker.engine_jax import FlaxStableDiffusionInpaintPipeline, FlaxStableDiffusionPipelineOutput, shard, unshard


@pytest.fixture(scope="module")
def pipeline():
    return FlaxStableDiffusionInpaintPipeline.from_pretrained(tiny_checkpoints.folder("inpaint"))


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8))
MASK = Image.new("L", (100, 70), 0)
MASK.paste(255, (10, 10, 60, 40))


def test_prepare_inputs_has_the_documented_shapes_and_ranges(pipeline):
    ids, masked, mask = pipeline[0].prepare_inputs(["a cup", "a cat"], [IMAGE] * 2, [MASK] * 2)
    assert ids.shape == (2, 77)
    assert masked.shape == (2, 3, 64, 96) and mask.shape == (2, 1, 64, 96)  # multiples of 32
    masked, mask = np.asarray(masked), np.asarray(mask)
    assert set(np.unique(mask)) == {0, 1} and 0.1 < mask.mean() < 0.4
    assert not masked[np.broadcast_to(mask == 1, masked.shape)].any()
    assert masked.min() < -0.9 and masked.max() > 0.9


def test_a_single_picture_and_prompt_make_a_batch_of_one(pipeline):
    ids, masked, mask = pipeline[0].prepare_inputs("a cup", IMAGE, MASK)
    assert len(ids) == len(masked) == len(mask) == 1


@pytest.mark.parametrize(
    "prompt, image, mask, field",
    [
        (3, IMAGE, MASK, "prompt"),
        ("a", np.zeros((64, 64, 3)), MASK, "image"),
        ("a", IMAGE.convert("RGBA"), MASK, "image"),
        ("a", [IMAGE, IMAGE.resize((64, 64))], MASK, "image"),
        ("a", IMAGE, [], "mask"),
        ("a", IMAGE, MASK.resize((64, 64)), "mask"),
        ("a", Image.new("RGB", (20, 64)), MASK, "image"),
    ],
)
def test_what_is_no_picture_or_text_is_refused_by_name(pipeline, prompt, image, mask, field):
    with pytest.raises(InvalidParameter) as caught:
        pipeline[0].prepare_inputs(prompt, image, mask)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "changed, field",
    [
        ({"height": 60}, "height"),
        ({"latents": np.zeros((1, 4, 4, 4), np.float32)}, "latents"),
        ({"mask": np.zeros((2, 1, 64, 64), np.float32)}, "mask"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"jit": True}, "prompt_ids"),
    ],
)
def test_a_call_that_cannot_be_made_is_refused_before_anything_is_compiled(pipeline, changed, field):
    pipe, params = pipeline
    ids, masked, mask = pipe.prepare_inputs("a cup", IMAGE.resize((64, 64)), MASK.resize((64, 64)))
    arguments = {"prompt_ids": ids, "mask": mask, "masked_image": masked, "height": 64, "width": 64, **changed}
    with pytest.raises(InvalidParameter) as caught:
        pipe(params=params, prng_seed=jax.random.PRNGKey(0), **arguments)
    assert caught.value.field == field


@pytest.mark.parametrize("kind, said", [("plain", "in_channels"), ("distilled", "time_cond_proj_dim")])
def test_a_model_that_it_does_not_run_is_refused_by_its_key(kind, said):
    with pytest.raises(CheckpointInvalid, match=said):
        FlaxStableDiffusionInpaintPipeline.from_pretrained(tiny_checkpoints.folder(kind))


def test_a_scheduler_that_draws_noise_is_refused_and_another_taken(pipeline):
    pipe, before = pipeline[0], pipeline[0].scheduler
    with pytest.raises(FeatureUnavailable, match="EulerAncestral"):
        pipe.scheduler = from_config(before.config, _class_name="EulerAncestralDiscreteScheduler")
    pipe.scheduler = from_config(before.config, _class_name="LMSDiscreteScheduler")
    assert type(pipe.scheduler).__name__ == "LMSDiscreteScheduler"
    pipe.scheduler = before


def test_parameters_are_the_modules_weights_and_not_their_memory(pipeline):
    pipe, params = pipeline
    weight = pipe.host.unet.conv_in.weight
    array = params["unet"]["conv_in.weight"]
    assert (np.asarray(array) == weight.detach().numpy()).all()
    with torch.no_grad():
        kept = weight.clone()
        weight.add_(1)
    assert (np.asarray(array) == kept.numpy()).all()
    with torch.no_grad():
        weight.copy_(kept)


def test_shard_deals_rows_out_and_unshard_collects_them():
    rows = np.arange(2 * jax.device_count() * 3).reshape(-1, 3)
    dealt = shard(rows)
    assert dealt.shape == (jax.device_count(), 2, 3)
    assert (np.asarray(unshard(dealt)) == rows).all()


def test_an_output_can_be_changed_in_a_copy():
    output = FlaxStableDiffusionPipelineOutput(images=np.zeros((1, 8, 8, 3)))
    changed = output.replace(nsfw_content_detected=[True])
    assert output.nsfw_content_detected is None and changed.nsfw_content_detected == [True]
    assert changed.images is output.images
