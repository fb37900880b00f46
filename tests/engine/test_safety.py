"""The safety checker: diffusers' scores, a black picture and a flag."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker as TheirChecker
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from tests.engine.comparison import run
from tests.engine.conftest import VISION, tiny_image_processor
from tests.engine.pictures import hole, picture
from tests.engine.tiny_checkpoints import oracle, ours
from worker.engine.errors import CheckpointInvalid, InvalidParameter
from worker.engine.safety import StableDiffusionSafetyChecker, flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checker whose concepts lie where CLIP's embeddings of random pictures lie, so that some are flagged."""
    torch.manual_seed(0)
    checker = TheirChecker(CLIPConfig(vision_config=VISION, projection_dim=VISION["projection_dim"])).eval()
    with torch.no_grad():
        checker.concept_embeds.copy_(torch.randn(checker.concept_embeds.shape))
        checker.special_care_embeds.copy_(torch.randn(checker.special_care_embeds.shape))
        checker.concept_embeds_weights.fill_(0.4)
        checker.special_care_embeds_weights.fill_(0.3)
    path = tmp_path_factory.mktemp("safety")
    checker.save_pretrained(path)
    return path


def inputs(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 3


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 1.0])
def test_flags_equal_diffusers(folder: Path, threshold: float) -> None:
    mine, theirs = StableDiffusionSafetyChecker.from_pretrained(folder), TheirChecker.from_pretrained(folder).eval()
    for checker in (mine, theirs):
        checker.concept_embeds_weights.data.fill_(threshold)
    clip, images = inputs(8), torch.rand(8, 3, 16, 16)
    ours_images, ours_flags = mine(clip_input=clip, images=images.clone())
    their_images, their_flags = theirs(clip_input=clip, images=images.clone())
    assert ours_flags == their_flags
    assert torch.equal(ours_images, their_images)
    assert all(not image.any() for image, flag in zip(ours_images, ours_flags, strict=True) if flag)


def test_flags_are_of_both_kinds(folder: Path) -> None:
    checker = StableDiffusionSafetyChecker.from_pretrained(folder)
    _, flagged = checker(clip_input=inputs(40), images=torch.rand(40, 3, 8, 8))
    assert len(set(flagged)) == 2


@pytest.mark.parametrize(
    ("special", "concept", "flagged"),
    [
        (0.0, 0.0, False),
        (0.0, 0.0004, False),  # rounds to 0.000
        (0.0, 0.0006, True),
        (0.001, -0.009, True),  # special care lowers every threshold by 0.01
        (0.001, -0.0105, False),
        (0.0004, -0.009, False),
    ],
)
def test_scores(special: float, concept: float, flagged: bool) -> None:
    half = np.full((1, 1), 0.5, dtype=np.float32)
    thresholds = np.full(1, 0.5, dtype=np.float32)
    assert flags(half + np.float32(special), thresholds, half + np.float32(concept), thresholds) == [flagged]


@pytest.mark.parametrize("threshold", [-1.0, 1.0])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_a_flagged_picture_is_black_and_marked(folder: Path, threshold: float, output_type: str) -> None:
    made = []
    for pipe, cls in ((ours("inpaint"), StableDiffusionSafetyChecker), (oracle("inpaint"), TheirChecker)):
        checker = cls.from_pretrained(folder).eval()
        checker.concept_embeds_weights.data.fill_(threshold)
        parts = {**pipe.components, "safety_checker": checker, "feature_extractor": tiny_image_processor()}
        guarded = type(pipe)(**parts)
        guarded.set_progress_bar_config(disable=True)
        torch.manual_seed(0)
        arguments = {"prompt": ["a", "b"], "image": picture(), "mask_image": hole(), "num_inference_steps": 1}
        made.append(guarded(**arguments, generator=torch.Generator().manual_seed(0), output_type=output_type))
    assert made[0].nsfw_content_detected == made[1].nsfw_content_detected == [threshold < 0] * 2
    for mine, theirs in zip(made[0].images, made[1].images, strict=True):
        assert np.abs(np.asarray(mine, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)).max() <= 1.5
        assert bool(np.asarray(mine).any()) is (threshold > 0)


def test_latents_are_not_judged(folder: Path) -> None:
    pipe = ours("inpaint")
    checker = StableDiffusionSafetyChecker.from_pretrained(folder)
    guarded = type(pipe)(**{**pipe.components, "safety_checker": checker, "feature_extractor": tiny_image_processor()})
    guarded.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"output_type": "latent", "num_inference_steps": 1}
    assert run(guarded, arguments).shape == (1, 4, 8, 8)


def test_a_checker_needs_a_feature_extractor(folder: Path) -> None:
    pipe = ours("inpaint")
    with pytest.raises(InvalidParameter, match="feature_extractor"):
        type(pipe)(**{**pipe.components, "safety_checker": StableDiffusionSafetyChecker.from_pretrained(folder)})


def test_files(folder: Path, tmp_path: Path) -> None:
    """Older files nest the tower once more; what is saved diffusers reads back; what is missing is named."""
    checker = StableDiffusionSafetyChecker.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert checker.dtype == torch.bfloat16
    checker = StableDiffusionSafetyChecker.from_pretrained(folder)
    checker.save_pretrained(tmp_path)
    again = TheirChecker.from_pretrained(tmp_path)
    assert all(torch.equal(t, checker.state_dict()[name]) for name, t in again.state_dict().items())

    weights = tmp_path / "model.safetensors"
    tensors = load_file(weights)
    old = {name.replace("vision_model.", "vision_model.vision_model."): t for name, t in tensors.items()}
    old["vision_model.vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    save_file(old, weights)
    older = StableDiffusionSafetyChecker.from_pretrained(tmp_path)
    assert all(torch.equal(t, checker.state_dict()[name]) for name, t in older.state_dict().items())

    save_file({name: t for name, t in tensors.items() if name != "concept_embeds"}, weights)
    with pytest.raises(CheckpointInvalid, match="concept_embeds"):
        StableDiffusionSafetyChecker.from_pretrained(tmp_path)
