"""The gate on real paintings: it passes what the demo's model does well, and marks the same when it is spoilt.

Prints the table that `worker/gate.py` quotes: other noise gives other numbers, but the same verdicts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import cycle
from typing import Final, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from farm.schemas import InpaintJob, Scores
from producer.demo import BRANDS, SIZES
from producer.photos import STUDIO, Scene, demo_scenes
from worker import images
from worker.demo import shipped
from worker.demo.quality.seams import seam_orders
from worker.demo.scenes.masks import draw
from worker.engine import StableDiffusionInpaintPipeline
from worker.gate import Limits, accept, judge
from worker.images.masks import grown

pytestmark = pytest.mark.full

JOB: Final = InpaintJob(custom_id="any", image="s3://any/any.png")  # for what a job is given unless it asks for more
EDITS: Final = 48
PHOTOGRAPHS: Final = 24
SIDE: Final = 192


class Case(NamedTuple):
    """[height, width, 3] of uint8, and masks [height, width] of 0 and 255."""

    source: np.ndarray
    mask: np.ndarray
    grown: np.ndarray
    painted: np.ndarray


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionInpaintPipeline:
    made = StableDiffusionInpaintPipeline.from_pretrained(shipped.CHECKPOINT)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def edits(pipe: StableDiffusionInpaintPipeline) -> list[Case]:
    """The demo's jobs, as its worker paints them."""
    brands, cases = cycle(BRANDS.items()), []
    for seed, scene in enumerate(demo_scenes(EDITS)):
        region, submitted = _cut(scene)
        prompt = scene.prompt
        if prompt in STUDIO:
            name, words = next(brands)
            prompt = f"{prompt}, {words}"
            pipe.load_lora_weights(shipped.LORAS / f"{name}.safetensors", adapter_name=name)
        painted = pipe(
            prompt=prompt, image=region.image, mask_image=region.mask, width=region.image.width,
            height=region.image.height, num_inference_steps=12, guidance_scale=2.0,
            generator=torch.Generator().manual_seed(seed),
        ).images[0]  # fmt: skip
        pipe.unload_lora_weights()
        cases.append(Case(*(np.asarray(part) for part in (region.image, submitted, region.mask, painted))))
    return cases


def _cut(scene: Scene) -> tuple[images.Region, Image.Image]:
    def file(picture: Image.Image) -> bytes:
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        return buffer.getvalue()

    source = images.decode(file(scene.image), file(scene.mask), polarity="white_edits", max_pixels=1 << 20)
    left, top, right, bottom = images.edit_box(source.mask, JOB.padding_mask_crop)
    buckets = tuple((int(width), int(height)) for width, height in (size.split("x") for size in SIZES))
    bucket = images.choose_bucket(buckets, (right - left, bottom - top))
    region = images.cut(source, bucket, padding=JOB.padding_mask_crop, grow=JOB.grow_mask)
    return region, source.mask.resize(bucket, Image.Resampling.BOX, box=region.box)


@pytest.fixture(scope="module")
def retouches(pipe: StableDiffusionInpaintPipeline) -> list[Case]:
    """Boxes and strokes across photographs and scenes; painted is what was there, as the autoencoder gives it back."""
    holes = [(order.scene.picture.transpose(1, 2, 0), order.scene.mask) for order in seam_orders(40)]
    for number, scene in enumerate(demo_scenes(PHOTOGRAPHS)):
        nowhere = np.zeros((SIDE, SIDE), np.float32)
        mask = draw(np.random.default_rng(number), ("boxes", "strokes")[number % 2], nowhere)
        holes.append((np.asarray(scene.image.convert("RGB").resize((SIDE, SIDE))), mask))
    cases = []
    for source, hole in holes:
        pixels = torch.from_numpy(source.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
        with torch.no_grad():
            back = pipe.vae.decode(pipe.vae.encode(pixels).mode())[0]
        painted = ((back.permute(1, 2, 0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
        mask = np.where(hole > 0, np.uint8(255), np.uint8(0))
        cases.append(Case(source, mask, grown(mask, JOB.grow_mask), painted))
    return cases


def _redder(case: Case, stranger: Case) -> np.ndarray:
    return np.clip(case.painted + np.array([25.0, -10.0, 0.0]), 0, 255)


def _redder_inside(case: Case, stranger: Case) -> np.ndarray:
    return np.where(case.grown[..., None] > 0, _redder(case, stranger), case.painted)


def _darker(case: Case, stranger: Case) -> np.ndarray:
    return case.painted * 0.75


def _pasted(case: Case, stranger: Case) -> np.ndarray:
    other = Image.fromarray(stranger.source).resize((case.mask.shape[1], case.mask.shape[0]))
    return np.where(case.grown[..., None] > 0, np.asarray(other), case.painted)


def _noise(case: Case, stranger: Case) -> np.ndarray:
    return np.random.default_rng(0).normal(128, 60, case.source.shape).clip(0, 255)


def _grey(case: Case, stranger: Case) -> np.ndarray:
    return np.full(case.source.shape, 128.0)


Spoil = Callable[[Case, Case], np.ndarray]
# What is judged, how it is spoilt, and the least and the most of it that is to be marked.
ROWS: Final[tuple[tuple[str, str, Spoil | None, float, float], ...]] = (
    ("edits", "as they are", None, 0.0, 0.0),
    ("edits", "noise", _noise, 0.6, 1.0),
    ("edits", "grey", _grey, 0.6, 1.0),
    ("retouches", "as they are", None, 0.0, 0.0),
    ("retouches", "redder by 25 in the mask", _redder_inside, 0.8, 1.0),
    ("retouches", "redder by 25 everywhere", _redder, 0.8, 1.0),
    ("retouches", "a quarter darker everywhere", _darker, 0.9, 1.0),
    ("retouches", "a stranger's picture in the mask", _pasted, 0.85, 1.0),
    ("retouches", "noise", _noise, 0.98, 1.0),
)


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    lines = ["| painted | cases | seam | colour shift | marked |", "| --- | ---: | ---: | ---: | ---: |"]
    yield lines
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("", *lines, sep="\n", file=sys.stderr)


def _scores(cases: list[Case], spoil: Spoil | None) -> list[Scores]:
    found = []
    for case, stranger in zip(cases, cases[1:] + cases[:1], strict=True):
        painted = spoil(case, stranger) if spoil else case.painted
        mask, seen = Image.fromarray(case.mask), Image.fromarray(case.grown)
        found.append(judge(case.source, mask, painted, grown=seen))
    return found


@pytest.mark.parametrize(("what", "how", "spoil", "least", "most"), ROWS, ids=[f"{row[0]}-{row[1]}" for row in ROWS])
def test_good_paintings_pass_and_spoilt_ones_are_marked(
    request: pytest.FixtureRequest,
    table: list[str],
    what: str,
    how: str,
    spoil: Spoil | None,
    least: float,
    most: float,
) -> None:
    scores = _scores(request.getfixturevalue(what), spoil)
    marked = sum(not accept(score, Limits()) for score in scores)
    spans = (np.quantile([getattr(s, name) for s in scores], [0, 0.5, 1]) for name in ("seam", "colour_shift"))
    seam, shift = (" / ".join(f"{value:.0f}" for value in span) for span in spans)
    table.append(f"| {what}, {how} | {len(scores)} | {seam} | {shift} | {marked} |")
    assert least <= marked / len(scores) <= most
