"""The gate: what it rejects, what it must let pass, and what is painted again with which seed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from farm.config import load_settings
from farm.errors import BlackOutput
from farm.schemas import InpaintJob
from producer.photos import demo_scenes
from worker.gate import Limits, accept, judge
from worker.gatekeeper import another_seed, paint, retries
from worker.runner import Rendered, RenderRequest

SIZE = (192, 192)
TINTS = (("#0b1f5c", "#9fc4ff"), ("#4d1a0a", "#ffc9a8"), ("#202020", "#303030"))


def vae(picture: Image.Image, seed: int = 0, blur: float = 0.8, noise: float = 5.0, shift: float = 4.0) -> Image.Image:
    """What encoding and decoding does to a picture: a little blur, grain, and a shift of the whole."""
    rng = np.random.default_rng(seed)
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    made = soft + rng.normal(0, noise, soft.shape) + rng.uniform(-shift, shift, 3)
    return Image.fromarray(np.clip(made, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def scenes() -> list[tuple[Image.Image, Image.Image, Image.Image]]:
    """(photograph, mask, grown mask) of eight scenes, as a model gets them."""
    found = []
    for scene in demo_scenes(8):
        mask = scene.mask.convert("L").resize(SIZE, Image.Resampling.BOX).point(lambda v: 255 if v >= 128 else 0)
        found.append((scene.image.convert("RGB").resize(SIZE), mask, mask.filter(ImageFilter.MaxFilter(11))))
    return found


def tinted(photo: Image.Image, mask: Image.Image, tint: tuple[str, str]) -> Image.Image:
    made = photo.copy()
    made.paste(ImageOps.colorize(photo.convert("L"), *tint), mask=mask)
    return made


def test_ordinary_edits_pass(scenes) -> None:
    for number, (photo, mask, grown) in enumerate(scenes):
        for where in (mask, grown):  # a model may paint up to the mask's edge or over the grown rim
            for tint in TINTS:
                scores = judge(photo, mask, vae(tinted(photo, where, tint), number), grown=grown)
                assert accept(scores, Limits()) and scores.worst <= 1, (number, tint, scores)
        rough = vae(tinted(photo, mask, TINTS[0]), number, blur=1.5, noise=10, shift=10)
        assert accept(judge(photo, mask, rough, grown=grown), Limits())


BROKEN = {
    "black": lambda good, photo: Image.new("RGB", SIZE),
    "unchanged": lambda good, photo: photo,
    "one colour": lambda good, photo: Image.new("RGB", SIZE, (255, 0, 255)),
    "grey": lambda good, photo: Image.new("RGB", SIZE, (128, 128, 128)),
    "noise": lambda good, photo: Image.effect_noise(SIZE, 200).convert("RGB"),
    "washed out": lambda good, photo: Image.eval(good, lambda v: 127 + v // 2),
    "another colour": lambda good, photo: ImageChops.add(good, Image.new("RGB", SIZE, (70, 0, 40))),
    "another place": lambda good, photo: photo.transpose(Image.Transpose.ROTATE_180),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_broken_is_rejected_wherever_enough_was_to_be_left_as_it_was(scenes, how: str) -> None:
    judged = 0
    for number, (photo, mask, grown) in enumerate(scenes):
        left = np.asarray(grown.filter(ImageFilter.MaxFilter(17))) == 0  # further away than a latent cell
        if left.mean() < 0.1 and how not in ("black", "unchanged"):
            continue
        judged += 1
        bad = BROKEN[how](vae(tinted(photo, mask, TINTS[number % 3]), number), photo)
        scores = judge(photo, mask, bad, grown=grown)
        assert not accept(scores, Limits()) and scores.worst > 1, (number, scores)
    assert judged >= 5


CASTS = {
    "everywhere": lambda good, cast, grown: cast,
    "in what was repainted": lambda good, cast, grown: Image.composite(cast, good, grown),
}
SPOILT = {
    "another colour": lambda good, stranger: ImageChops.add(good, Image.new("RGB", SIZE, (25, 12, 0))),
    "darker": lambda good, stranger: ImageEnhance.Brightness(good).enhance(0.75),
    "a stranger's picture": lambda good, stranger: stranger,
}


@pytest.mark.parametrize("where", CASTS)
@pytest.mark.parametrize("how", SPOILT)
def test_a_retouch_that_does_not_go_on_with_its_surroundings_is_rejected(scenes, how: str, where: str) -> None:
    """Boxes cut across photographs; what is painted there is what was there, as a VAE gives it back, or spoilt."""
    dice, judged = np.random.default_rng(1), 0
    for number, (photo, _, _) in enumerate(scenes):
        left, top = dice.integers(20, 90, 2)
        mask = Image.new("L", SIZE)
        mask.paste(255, (int(left), int(top), int(left) + 70, int(top) + 70))
        grown, good = mask.filter(ImageFilter.MaxFilter(11)), vae(photo, number)
        assert accept(judge(photo, mask, good, grown=grown), Limits())
        spoilt = SPOILT[how](good, scenes[(number + 1) % len(scenes)][0])
        scores = judge(photo, mask, CASTS[where](good, spoilt, grown), grown=grown)
        if scores.seam:  # an edge that lies in a motorcycle's wheels is nothing to go on with
            judged += 1
            assert not accept(scores, Limits()), (number, scores)
    assert judged >= 6


def squares(
    value: int, beyond: int = 100, *, thing: int = 100, to: int = 130
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A grey source of 100, a mask in its middle, and a picture of `value` in the mask and `beyond` around it.

    In the source a `thing` begins with the mask at the left and at the top, and ends at `to`; the mask ends at 130.
    """
    source, mask = Image.new("RGB", SIZE, (100, 100, 100)), Image.new("L", SIZE)
    source.paste((thing,) * 3, (60, 60, to, to))
    mask.paste(255, (60, 60, 130, 130))
    painted = Image.new("RGB", SIZE, (beyond,) * 3)
    painted.paste((value,) * 3, mask=mask)
    return source, mask, painted


def test_the_formulas_by_hand() -> None:
    assert judge(*squares(0)).blank == 1 and judge(*squares(5)).blank == 0
    assert judge(*squares(140)).seam == pytest.approx(40)
    assert judge(*squares(140, thing=108)).seam == pytest.approx(32)  # the source's own step is none of the painting's
    assert judge(*squares(140, beyond=112)).colour_shift == pytest.approx(12)
    assert judge(*squares(140)).colour_shift == 0


def test_at_an_outline_any_step_may_be_right() -> None:
    assert judge(*squares(200, thing=50)).seam == 0
    # a thing that goes on beyond half of the mask's edge is to go on there
    assert judge(*squares(200, thing=50, to=180)).seam == pytest.approx(150)
    # and where all but a thing in the middle is repainted there is nothing to go on with, be it as grey as the rest
    source, mask, painted = squares(140)
    assert judge(source, ImageOps.invert(mask), painted).seam == 0


def test_what_the_model_mixes_at_the_masks_edge_is_no_shift() -> None:
    source, mask, painted = squares(140)
    near = mask.filter(ImageFilter.MaxFilter(17))
    painted.paste((255, 255, 255), mask=ImageChops.subtract(near, mask))
    assert judge(source, mask, painted).colour_shift == 0
    painted.paste((255, 255, 255), mask=ImageOps.invert(near))
    assert judge(source, mask, painted).colour_shift == pytest.approx(155)
    almost_all = Image.new("L", SIZE, 255)
    almost_all.paste(0, (0, 0, 20, 20))
    assert judge(source, almost_all, painted).colour_shift == 0


def test_white_painted_white_is_not_called_unchanged() -> None:
    source, mask, painted = squares(100)
    assert judge(source, mask, painted).unchanged == 0
    textured = Image.effect_noise(SIZE, 120).convert("RGB")
    assert judge(textured, mask, textured).unchanged == 1
    assert judge(textured, mask, ImageOps.invert(textured)).unchanged < 0.1


def test_what_is_not_finite_is_blank() -> None:
    source, mask, painted = squares(140)
    values = np.asarray(painted, dtype=np.float32).copy()
    values[60:130, 60:95] = np.nan
    scores = judge(source, mask, values)
    assert scores.blank == pytest.approx(0.5) and np.isfinite(scores.worst)


@pytest.mark.parametrize("box", [(0, 0, *SIZE), (5, 5, 5, 5), (10, 10, 11, 11), (0, 0, 192, 4)])
def test_any_mask_is_judged(box: tuple[int, int, int, int]) -> None:
    source, _, painted = squares(140)
    mask = Image.new("L", SIZE)
    mask.paste(255, box)
    assert np.isfinite(judge(source, mask, painted).worst)


def test_limits_come_from_the_settings_and_a_picture_at_its_limit_passes() -> None:
    settings = load_settings(gate_colour_shift=12.0, gate_seam=3.0)
    limits = Limits.of(settings)
    assert limits == Limits(settings.gate_blank, settings.gate_unchanged, 3.0, 12.0)
    assert Limits.of(load_settings()) == Limits()
    source, mask, painted = squares(140, beyond=112, thing=200)
    scores = judge(source, mask, painted, limits=limits)
    assert scores.worst == pytest.approx(1) and accept(scores, limits)


# Painting again


@dataclass
class Model:
    """Paints well for the seeds it is told to, else a shift of so many levels; or raises."""

    good: set[int]
    shifts: dict[int, int] = field(default_factory=dict)
    asked: list[tuple[int, int]] = field(default_factory=list)
    black: int = 0

    def __call__(self, request: RenderRequest) -> Rendered:
        count = request.job.num_images_per_prompt
        self.asked.append((request.seed, count))
        if len(self.asked) <= self.black:
            raise BlackOutput("black")
        seeds = range(request.seed, request.seed + count)
        shift = {s: 0 if s in self.good else self.shifts.get(s, 60) for s in seeds}
        pictures = [squares(140, 100 + shift[s])[2] for s in seeds]
        return Rendered(pictures, {"denoise": 1.0}, warnings=("said",))


def request(seed: int = 7, **fields: Any) -> RenderRequest:
    source, mask, _ = squares(140, thing=200)
    job = InpaintJob(custom_id="x", image="s3://bucket/x.png", **fields)
    return RenderRequest(job, source, mask, seed, lambda: None)


def settings(gate_retries: int):
    return load_settings(gate_retries=gate_retries)


def test_a_good_picture_is_painted_once() -> None:
    model, asked = Model({7}), request()
    judged = paint(model, asked, asked.mask, settings(3))
    assert (judged.seeds, judged.rerenders, judged.needs_review, model.asked) == ((7,), 0, False, [(7, 1)])
    assert judged.rendered.timings == {"denoise": 1.0} and judged.scores[0].worst <= 1


def test_only_what_is_rejected_is_painted_again_with_a_seed_made_from_the_first() -> None:
    second = another_seed(7, 1)
    model, asked = Model({7, 9, second + 1}), request(num_images_per_prompt=4)
    judged = paint(model, asked, asked.mask, settings(2))
    third = another_seed(7, 2)
    assert model.asked == [(7, 4), (second, 2), (third, 1)]
    assert judged.seeds[0] == 7 and judged.seeds[2] == 9 and judged.seeds[3] == second + 1
    assert judged.rerenders == 2 and judged.needs_review
    assert judged.rendered.timings == {"denoise": 3.0} and judged.rendered.warnings == ("said",)
    assert len(judged.rendered.images) == len(judged.scores) == 4
    assert len({7, second, third}) == 3 and another_seed(7, 1) == second


def test_of_pictures_that_are_all_rejected_the_best_is_kept() -> None:
    second, third = another_seed(7, 1), another_seed(7, 2)
    model, asked = Model(set(), {7: 90, second: 40, third: 70}), request()
    judged = paint(model, asked, asked.mask, settings(2))
    assert judged.seeds == (second,) and judged.needs_review and judged.scores[0].colour_shift == pytest.approx(40)


def test_a_render_that_gave_no_picture_is_tried_again_and_fails_only_at_last() -> None:
    model, asked = Model({another_seed(7, 1)}, black=1), request()
    judged = paint(model, asked, asked.mask, settings(1))
    assert judged.seeds == (another_seed(7, 1),) and not judged.needs_review
    with pytest.raises(BlackOutput):
        paint(Model(set(), black=2), asked, asked.mask, settings(1))
    with pytest.raises(BlackOutput):
        paint(Model(set(), black=1), asked, asked.mask, settings(0))


def test_who_decides_how_often() -> None:
    free = request().job
    assert retries(free, settings(2)) == 2 and retries(free, settings(0)) == 0
    named = free.model_copy(update={"seed": 7})
    assert retries(named, settings(2)) == 0
    assert retries(named.model_copy(update={"gate_retries": 1}), settings(0)) == 1
