"""Fixtures of the engine's tests: one thread, and small random-weight checkpoints in the real layout."""

import json
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.engine import tiny_checkpoints as tiny

VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
    "projection_dim": 24,
}

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_checkpoint(in_channels=9, *, kind="inpaint", safety_checker=False, image_encoder=False, **unet) → folder.

    Written by diffusers with random weights, once for each set of arguments: treat it as read-only. `kind` is one of
    tiny_checkpoints.KINDS; whatever else is given changes the UNet's configuration.
    """
    made: dict[str, Path] = {}

    def make(
        in_channels: int = 9,
        *,
        kind: str = "inpaint",
        safety_checker: bool = False,
        image_encoder: bool = False,
        **unet,
    ) -> Path:
        key = json.dumps([in_channels, kind, safety_checker, image_encoder, unet], sort_keys=True)
        if key not in made:
            torch.manual_seed(len(made))
            made[key] = tmp_path_factory.mktemp("checkpoint")
            diffusers.StableDiffusionInpaintPipeline(
                vae=tiny.vae(kind),
                text_encoder=tiny.text_encoder(),
                tokenizer=tiny.tokenizer(),
                unet=diffusers.UNet2DConditionModel(
                    **{**tiny.UNET, **tiny.KINDS[kind], "in_channels": in_channels, **unet}
                ),
                scheduler=diffusers.DDIMScheduler(**tiny.SCHEDULER),
                safety_checker=tiny_safety_checker() if safety_checker else None,
                feature_extractor=tiny_image_processor() if safety_checker or image_encoder else None,
                image_encoder=tiny_image_encoder() if image_encoder else None,
                requires_safety_checker=safety_checker,
            ).save_pretrained(made[key])
        return made[key]

    return make


def tiny_image_encoder() -> CLIPVisionModelWithProjection:
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION)).eval()


def tiny_image_processor() -> CLIPImageProcessor:
    side = VISION["image_size"]
    return CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def tiny_safety_checker() -> StableDiffusionSafetyChecker:
    return StableDiffusionSafetyChecker(
        CLIPConfig(vision_config=VISION, projection_dim=VISION["projection_dim"])
    ).eval()
