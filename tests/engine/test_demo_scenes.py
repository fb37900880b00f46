"""The generator of training scenes: the same number gives the same scene, masks and captions say what they should."""

from __future__ import annotations

import re
import subprocess
import sys
import zlib

import numpy as np
import pytest

from producer.photos import BACKDROPS, SETUPS
from worker.demo import vocabulary
from worker.demo.quality.looks import CLASSES, LookClassifier, generator_numbers
from worker.demo.scenes import backdrops, make_scene, masks, palette
from worker.demo.scenes.looks import LOOKS

SMALL = (32, 32)


def test_the_same_number_gives_the_same_scene_and_another_number_another() -> None:
    first, again, other, elsewhere = (make_scene(*which, (64, 48)) for which in ((1, 7), (1, 7), (1, 8), (2, 7)))
    assert first.picture.shape == (3, 64, 48) and first.picture.dtype == np.uint8
    assert first.mask.shape == (64, 48) and set(np.unique(first.mask)) <= {0, 1}
    assert np.array_equal(first.picture, again.picture) and np.array_equal(first.mask, again.mask)
    assert first.caption == again.caption
    for different in (other, elsewhere):
        assert not np.array_equal(first.picture, different.picture)


def test_a_scene_is_the_same_in_another_process() -> None:
    code = (
        "import zlib; from worker.demo.scenes import make_scene; "
        "scene = make_scene(3, 4); print(zlib.crc32(scene.picture), scene.caption)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    scene = make_scene(3, 4)
    assert there == f"{zlib.crc32(scene.picture)} {scene.caption}\n"


def test_scenes_need_neither_torch_nor_photographs() -> None:
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('torch', 'skimage', 'scipy'))); "
        "from worker.demo.scenes import make_scene; make_scene(0, 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", backdrops.KINDS)
def test_every_backdrop_is_painted_in_any_size(kind: str) -> None:
    for index, shape in enumerate(((32, 32), (24, 72), (96, 40))):
        picture, phrase = backdrops.paint(np.random.default_rng(index), shape, kind)
        assert picture.shape == (3, *shape) and picture.dtype == np.float32 and np.isfinite(picture).all()
        assert picture.min() > -0.3 and picture.max() < 1.9 and phrase == " ".join(phrase.split())


@pytest.mark.parametrize("colour", palette.MAIN)
@pytest.mark.parametrize("kind", ["plain", "gradient", "paper"])
def test_a_backdrop_is_of_the_colour_it_is_called(kind: str, colour: str) -> None:
    right = 0
    for index in range(20):
        picture, phrase = backdrops.paint(np.random.default_rng(index), SMALL, kind, colour)
        named = re.search(rf"\b({colour}|{palette._SPELLINGS.get(colour, colour)})\b", phrase)
        assert named, phrase
        if any(shade in phrase for shade in palette._SHADES):  # dark pink may well be nearest to purple
            right += 1
            continue
        right += palette.nearest_name(np.clip(picture, 0, 1).mean(axis=(1, 2))) == colour
    assert right >= 18


def test_masks_repaint_what_they_are_called() -> None:
    rng, product = np.random.default_rng(0), np.zeros((64, 64), np.float32)
    product[20:60, 24:40] = 1
    for _ in range(30):
        around, itself = masks.draw(rng, "around", product), masks.draw(rng, "product", product)
        assert not (around == 0)[product < 0.5].any()  # keeps nothing of the old backdrop
        assert around.mean() > 0.7 and itself[30:50, 28:36].all() and itself.mean() < 0.35
        assert masks.draw(rng, "all", product).all()
        for kind in ("boxes", "strokes"):
            assert 0 < masks.draw(rng, kind, product).mean() < 1.0001
    assert masks.draw(rng, "product", np.zeros((64, 64), np.float32)).all()  # never an empty mask


def test_mask_kinds_come_up_as_often_as_planned() -> None:
    rng = np.random.default_rng(0)
    drawn = [masks.pick(rng) for _ in range(3000)]
    for kind, share in masks.KINDS.items():
        assert drawn.count(kind) / 3000 == pytest.approx(share, abs=0.03)


def test_captions_speak_the_vocabulary_and_cover_the_demos_prompts() -> None:
    known, seen = set(vocabulary._WORDS.split()), set()
    for index in range(450):
        seen |= set(re.findall(r"[a-z]+", make_scene(0, index, SMALL).caption))
    for look in LOOKS:
        for index in range(12):
            seen |= set(re.findall(r"[a-z]+", make_scene(0, index, SMALL, look=look).caption))
    assert seen <= known
    asked = {word for prompt in BACKDROPS for word in re.findall(r"[a-z]+", prompt)}
    assert asked <= seen
    assert len(seen & set(palette.COLOURS)) >= 25
    everything = {word for setup in SETUPS for prompt in setup.prompts for word in re.findall(r"[a-z]+", prompt)}
    assert len(everything & seen) / len(everything) > 0.75


# The words before the comma of each prompt of the demo, by the backdrop they should be made of.
ASKED = [
    ("gradient", "red", "red gradient studio backdrop"),
    ("marble", "white", "white marble table top"),
    ("plain", "blue", "plain blue studio backdrop"),
    ("wood", "beige", "light oak wood table top"),
    ("gradient", "green", "green gradient studio backdrop"),
    ("gradient", "grey", "grey gradient studio backdrop"),
    ("plain", "orange", "plain orange studio backdrop"),
    ("bokeh", "warm", "warm bokeh lights in the evening"),
    ("paper", "pink", "pastel pink seamless paper backdrop"),
    ("slate", "black", "dark slate stone"),
    ("paper", "yellow", "yellow seamless paper backdrop"),
]


def test_the_demos_prompts_are_captions_word_for_word() -> None:
    assert {asked for *_, asked in ASKED} | {"teal to purple gradient backdrop"} == {p.split(",")[0] for p in BACKDROPS}
    for kind, colour, asked in ASKED:
        phrases = (backdrops.paint(np.random.default_rng(i), (16, 16), kind, colour)[1] for i in range(400))
        assert asked in phrases, asked


def test_looks_stay_out_of_scenes_that_ask_for_none() -> None:
    triggers = {word for look in LOOKS.values() for trigger in look.triggers for word in trigger.split()} - {"lines"}
    for index in range(200):
        assert not triggers & set(make_scene(5, index, SMALL).caption.split())


def test_looks_are_told_apart_by_eight_numbers() -> None:
    classify = LookClassifier.of_generator(1, 20, (80, 80))
    for name in CLASSES:
        told = [classify(numbers) for numbers in generator_numbers(2, name, 15, (80, 80))]
        assert told.count(name) >= 12, (name, told)


def test_a_look_keeps_the_backdrops_colour() -> None:
    """Stripes and dots of white on red are still red: the look takes the asked colour over."""
    for look in ("polka", "stripes", "confetti"):
        picture = make_scene(0, 3, kind="plain", colour="red", mask="all", look=look).picture / 255
        assert picture[0].mean() - picture[1].mean() > 0.15, look


def test_lab_is_the_standards() -> None:
    """Values of the sRGB primaries as published with the standard's formulas."""
    expected = {(1, 1, 1): (100, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20), (0, 0, 1): (32.30, 79.19, -107.86)}
    for rgb, lab in expected.items():
        assert palette.to_lab(np.array(rgb, float)) == pytest.approx(lab, abs=0.05)
    assert all(palette.nearest_name(palette.rgb(name)) == name for name in palette.MAIN)
