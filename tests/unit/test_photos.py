"""The demo's scenes: real photographs, masks that fit them, no two alike."""

from __future__ import annotations

import importlib.resources
import itertools
from hashlib import sha256

import pytest
from PIL import Image, ImageChops, ImageStat

from farm.errors import InvalidParameter, Misconfigured
from farm.names import check_name
from producer import photos
from producer.outlines import OUTLINES, Ellipse, Hole, Polygon
from producer.photos import BACKDROPS, MAX_SCENES, PHOTOGRAPHS, SETUPS, Setup, demo_scenes


def fingerprint(scene: photos.Scene) -> str:
    parts = (scene.image.tobytes(), scene.mask.tobytes(), scene.prompt.encode())
    return sha256(b"\0".join(sha256(part).digest() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def scenes() -> list[photos.Scene]:
    return list(demo_scenes(len(SETUPS) + 12))


def test_there_are_enough_and_no_two_have_equal_inputs(scenes: list[photos.Scene]) -> None:
    assert len(SETUPS) >= 24
    assert len({fingerprint(scene) for scene in scenes}) == len(scenes)
    assert len({scene.custom_id for scene in scenes}) == len(scenes)
    for scene in scenes:
        check_name("custom_id", scene.custom_id)
        assert scene.prompt


def test_every_order_up_to_the_last_differs() -> None:
    orders = list(photos._orders())
    assert len(orders) == MAX_SCENES == len({(*setup[:-1], prompt) for setup, prompt in orders})


def test_the_first_ones_show_many_photographs_both_tasks_and_all_shapes(scenes: list[photos.Scene]) -> None:
    first = SETUPS[:24]
    assert len({setup.photo for setup in first}) >= 6
    assert {setup.what for setup in first} == {"keep", "edit"}
    shapes = {
        (scene.image.width > scene.image.height) - (scene.image.width < scene.image.height) for scene in scenes[:24]
    }
    assert shapes == {-1, 0, 1}
    assert len({scene.image.size for scene in scenes[:24]}) >= 12


def test_images_and_masks_are_what_a_job_takes(scenes: list[photos.Scene]) -> None:
    for scene in scenes:
        assert scene.image.mode == "RGB" and scene.mask.mode == "L"
        assert scene.image.size == scene.mask.size
        assert 256 <= max(scene.image.size) <= 640
        histogram = scene.mask.histogram()
        assert histogram[0] + histogram[255] == scene.mask.width * scene.mask.height
        assert 0.01 < histogram[255] / (histogram[0] + histogram[255]) < 0.97


def test_photographs_are_real_ones_not_flat(scenes: list[photos.Scene]) -> None:
    for scene in scenes:
        assert max(ImageStat.Stat(scene.image).stddev) > 20, scene.custom_id


def test_the_same_scenes_come_again(scenes: list[photos.Scene]) -> None:
    again = list(demo_scenes(5))
    assert [fingerprint(scene) for scene in again] == [fingerprint(scene) for scene in scenes[:5]]


def test_a_mask_keeps_the_subject_or_edits_it() -> None:
    keep = Setup("astronaut", "mission patch", "keep", (40, 256, 296, 512), 256)
    edit = keep._replace(what="edit")
    kept, edited = photos._mask(keep, (256, 256)), photos._mask(edit, (256, 256))
    assert kept.getpixel((131, 129)) == 0 and edited.getpixel((131, 129)) == 255  # the patch's middle
    assert kept.getpixel((5, 5)) == 255
    assert ImageChops.add(kept, edited).getextrema() == (255, 255)


@pytest.mark.parametrize("scale", [1, 2])
def test_a_mask_lies_where_its_outline_lies_to_a_tenth_of_a_pixel(monkeypatch: pytest.MonkeyPatch, scale: int) -> None:
    shapes = (Polygon("10,10 50,10 50,40 10,40"), Hole("20,20 30,20 30,30 20,30"), Ellipse(80.0, 50.0, 12.0, 8.0))
    monkeypatch.setitem(photos.OUTLINES, ("test", "shapes"), shapes)
    mask = photos._mask(Setup("test", "shapes", "edit", (0, 0, 100, 60), 100 * scale), (100 * scale, 60 * scale))
    assert mask.getbbox() == (10 * scale, 10 * scale, 92 * scale, 58 * scale)
    assert mask.crop((20 * scale, 20 * scale, 30 * scale, 30 * scale)).getextrema() == (0, 0)
    area = mask.histogram()[255] / scale**2
    assert area == pytest.approx(40 * 30 - 100 + 3.14159 * 12 * 8, rel=0.01)


def test_outlines_stay_within_their_photographs_and_each_is_used() -> None:
    for (photo, subject), shapes in OUTLINES.items():
        width, height = PHOTOGRAPHS[photo][1]
        for x, y in itertools.chain.from_iterable(shape.points() for shape in shapes):
            assert 0 <= x <= width and 0 <= y <= height, (photo, subject, x, y)
    assert {(setup.photo, setup.subject) for setup in SETUPS} == set(OUTLINES)
    for setup in SETUPS:
        left, top, right, bottom = setup.crop
        assert 0 <= left < right <= PHOTOGRAPHS[setup.photo][1][0]
        assert 0 <= top < bottom <= PHOTOGRAPHS[setup.photo][1][1]
        assert len(set(setup.prompts)) == len(setup.prompts) >= 3
    assert len(set(BACKDROPS)) == 12


@pytest.mark.parametrize("count", [0, -1, MAX_SCENES + 1])
def test_a_count_it_cannot_serve_is_refused(count: int) -> None:
    with pytest.raises(InvalidParameter, match=str(MAX_SCENES)):
        demo_scenes(count)


@pytest.fixture
def forget_photographs() -> object:
    photos._photograph.cache_clear()
    yield
    photos._photograph.cache_clear()


@pytest.mark.usefixtures("forget_photographs")
def test_without_scikit_image_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> object:
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(photos, "files", absent)
    with pytest.raises(Misconfigured, match=r"inpaint-farm\[demo\]"):
        next(demo_scenes(1))


@pytest.mark.usefixtures("forget_photographs")
def test_a_photograph_that_is_missing_or_changed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(photos, "files", lambda package: tmp_path)
    with pytest.raises(Misconfigured, match=r"coffee\.png"):
        next(demo_scenes(1))
    Image.new("RGB", (600, 401)).save(tmp_path / "data" / "coffee.png")
    with pytest.raises(Misconfigured, match=r"\(600, 401\)"):
        next(demo_scenes(1))


def test_the_photographs_lie_inside_the_package() -> None:
    folder = importlib.resources.files("skimage") / "data"
    assert all((folder / file).is_file() for file, _ in PHOTOGRAPHS.values())
