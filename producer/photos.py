"""The demo's catalogue: real photographs, masks drawn over them by hand, and what to paint there.

The photographs are those that scikit-image ships inside its wheel (all public domain or CC0), read at run time; the
outlines are ours. A scene either keeps its subject and repaints what is around it, as a catalogue does, or repaints
the subject itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, Literal, NamedTuple

from PIL import Image, ImageChops, ImageDraw

from farm.errors import InvalidParameter, Misconfigured
from producer.outlines import OUTLINES, Hole

Box = tuple[int, int, int, int]

# photograph → (file, its size). The outlines hold for exactly these.
PHOTOGRAPHS: Final[dict[str, tuple[str, tuple[int, int]]]] = {
    "astronaut": ("astronaut.png", (512, 512)),
    "camera": ("camera.png", (512, 512)),
    "chelsea": ("chelsea.png", (451, 300)),
    "coffee": ("coffee.png", (600, 400)),
    "coins": ("coins.png", (384, 303)),
    "motorcycle": ("motorcycle_left.png", (741, 500)),
    "rocket": ("rocket.jpg", (640, 427)),
}

# What a studio hangs up: the backdrops that brand looks are made for.
STUDIO: Final = (
    "red gradient studio backdrop",
    "plain blue studio backdrop",
    "green gradient studio backdrop",
    "pastel pink seamless paper backdrop",
    "plain orange studio backdrop",
    "yellow seamless paper backdrop",
    "teal to purple gradient backdrop",
    "grey gradient studio backdrop",
)
PLACES: Final = (
    "white marble table top, soft shadow",
    "light oak wood table top",
    "warm bokeh lights in the evening",
    "dark slate stone, side light",
)
# Two of the studio's, then a place, and so on.
BACKDROPS: Final = tuple(
    prompt for turn, place in enumerate(PLACES) for prompt in (*STUDIO[2 * turn : 2 * turn + 2], place)
)


@dataclass(frozen=True)
class Scene:
    """One edit to order. `mask` is as large as `image` and holds 0 (keep) and 255 (edit) only."""

    custom_id: str
    image: Image.Image
    mask: Image.Image
    prompt: str


class Setup(NamedTuple):
    """A photograph's cut-out (pixels of the photograph), the length of its long side, and what happens to `subject`."""

    photo: str
    subject: str
    what: Literal["keep", "edit"]
    crop: Box
    long_side: int
    prompts: tuple[str, ...] = BACKDROPS


_CREMA = ("latte art, white foam rosetta", "green matcha tea", "dark hot chocolate")
_SKY = ("orange sunset sky", "starry night sky", "pale morning mist")
_PATCH = ("plain gold embroidered patch", "blue and white striped patch", "black leather patch")
_VISOR = ("gold mirrored visor", "visor reflecting the earth", "polished silver visor")
_EYES = ("bright blue eyes", "amber eyes", "deep green eyes")
_NOSE = ("pink nose", "dark grey nose", "brown speckled nose")
_TANK = ("glossy blue paint", "matte black paint", "cream paint with a gold line")

SETUPS: Final = (
    Setup("coffee", "cup and saucer", "keep", (0, 0, 600, 400), 512),
    Setup("rocket", "rocket", "keep", (220, 60, 420, 427), 360),
    Setup("motorcycle", "motorcycle", "keep", (0, 0, 741, 500), 640),
    Setup("chelsea", "cat", "keep", (0, 0, 451, 300), 448),
    Setup("astronaut", "pilot", "keep", (0, 0, 512, 512), 512),
    Setup("coins", "coins", "keep", (0, 0, 384, 303), 384),
    Setup("camera", "cameraman", "keep", (0, 0, 512, 512), 448),
    Setup("coffee", "crema", "edit", (160, 0, 430, 270), 270, _CREMA),
    Setup("motorcycle", "motorcycle", "keep", (300, 20, 741, 461), 400),
    Setup("rocket", "sky", "edit", (0, 0, 640, 427), 512, _SKY),
    Setup("astronaut", "helmet", "keep", (222, 322, 512, 512), 288),
    Setup("coins", "coins", "keep", (0, 0, 384, 150), 384),
    Setup("coffee", "cup and saucer", "keep", (60, 0, 460, 400), 384),
    Setup("chelsea", "eyes", "edit", (90, 40, 390, 240), 300, _EYES),
    Setup("camera", "cameraman", "keep", (130, 50, 450, 260), 320),
    Setup("motorcycle", "tank", "edit", (0, 0, 741, 500), 576, _TANK),
    Setup("astronaut", "pilot", "keep", (90, 0, 370, 360), 360),
    Setup("rocket", "rocket", "keep", (0, 0, 640, 427), 600),
    Setup("coins", "coins", "keep", (230, 0, 384, 303), 300),
    Setup("astronaut", "mission patch", "edit", (40, 256, 296, 512), 256, _PATCH),
    Setup("coffee", "cup and saucer", "keep", (150, 0, 450, 400), 400),
    Setup("chelsea", "cat", "keep", (151, 0, 451, 300), 300),
    Setup("motorcycle", "motorcycle", "keep", (470, 10, 720, 470), 448),
    Setup("astronaut", "visor", "edit", (222, 312, 512, 512), 288, _VISOR),
    Setup("camera", "cameraman", "keep", (180, 50, 420, 512), 448),
    Setup("motorcycle", "tank", "edit", (280, 120, 540, 290), 260, _TANK),
    Setup("chelsea", "nose", "edit", (150, 0, 390, 300), 300, _NOSE),
    Setup("coffee", "crema", "edit", (0, 0, 600, 400), 320, _CREMA),
)

MAX_SCENES: Final = sum(len(setup.prompts) for setup in SETUPS)


def demo_scenes(count: int) -> Iterator[Scene]:
    """The first `count` scenes, always the same and all different in image, mask or prompt.

    Raises InvalidParameter if there are not so many (MAX_SCENES), Misconfigured if scikit-image or one of its
    photographs is missing.
    """
    if not 0 < count <= MAX_SCENES:
        raise InvalidParameter("count", f"must lie between 1 and {MAX_SCENES}, not {count}")
    return (
        _scene(number, setup, prompt) for number, (setup, prompt) in zip(range(1, count + 1), _orders(), strict=False)
    )


def _orders() -> Iterator[tuple[Setup, str]]:
    """Every setup with its next prompt, round after round, until each has used up its prompts."""
    for turn in range(max(len(setup.prompts) for setup in SETUPS)):
        for place, setup in enumerate(SETUPS):
            if turn < len(setup.prompts):
                yield setup, setup.prompts[(place + turn) % len(setup.prompts)]


def _scene(number: int, setup: Setup, prompt: str) -> Scene:
    left, top, right, bottom = setup.crop
    ratio = setup.long_side / max(right - left, bottom - top)
    size = (round((right - left) * ratio), round((bottom - top) * ratio))
    return Scene(
        custom_id=f"{number:03d}-{setup.photo}-{setup.what}-{setup.subject.replace(' ', '-')}",
        image=_photograph(setup.photo).resize(size, Image.Resampling.LANCZOS, box=setup.crop),
        mask=_mask(setup, size),
        prompt=prompt,
    )


_FINER = 8  # the outline is drawn this much finer, so that a pixel goes to the side that holds most of it


def _mask(setup: Setup, size: tuple[int, int]) -> Image.Image:
    left, top, right, bottom = setup.crop
    x_scale, y_scale = _FINER * size[0] / (right - left), _FINER * size[1] / (bottom - top)
    subject = Image.new("L", (_FINER * size[0], _FINER * size[1]), 0)
    pen = ImageDraw.Draw(subject)
    for shape in OUTLINES[setup.photo, setup.subject]:
        # Pillow puts whole numbers at pixels' centres, the outlines put them at edges
        points = [((x - left) * x_scale - 0.5, (y - top) * y_scale - 0.5) for x, y in shape.points()]
        pen.polygon(points, fill=0 if isinstance(shape, Hole) else 255)
    mask = subject.reduce(_FINER).point([0] * 128 + [255] * 128)
    return ImageChops.invert(mask) if setup.what == "keep" else mask


@cache
def _photograph(name: str) -> Image.Image:
    file, size = PHOTOGRAPHS[name]
    try:
        source = files("skimage") / "data" / file
    except ModuleNotFoundError:
        raise Misconfigured(
            "The demo takes its photographs from scikit-image, which is not installed; run "
            "`pip install 'inpaint-farm[demo]'`."
        ) from None
    if not source.is_file():
        raise Misconfigured(
            f"This scikit-image has no photograph {file}; run `pip install --force-reinstall 'scikit-image>=0.25'`."
        )
    with source.open("rb") as stream, Image.open(stream) as picture:
        if picture.size != size:
            raise Misconfigured(f"scikit-image's {file} is {picture.size}, not {size}: the demo's masks do not fit it.")
        return picture.convert("RGB")
