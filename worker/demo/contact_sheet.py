"""`python -m worker.demo.contact_sheet`: what the shipped model does, on one PNG.

Columns are held-out scenes, rows are prompts; the first row shows what was given. With `--demo FOLDER`, the folder of
a `farm demo`, its real photographs come first, each beside its edit; `--photographs FILE` writes only these, larger.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from worker.demo import shipped
from worker.demo.quality.painter import SEED, Order, Painter, pasted
from worker.demo.scenes import Scene, make_scene
from worker.demo.training.data import series

PROMPTS: Final = (
    "red gradient studio backdrop",
    "plain blue studio backdrop",
    "yellow seamless paper backdrop",
    "teal to purple gradient backdrop",
    "white marble table top, soft shadow",
    "light oak wood table top",
    "grey linen fabric backdrop",
    "white ceramic tiles, soft light",
    "warm bokeh lights in the evening",
    "dark slate stone, side light",
)
BRANDS: Final = {
    "polka": "red gradient studio backdrop, polka dots",
    "confetti": "plain blue studio backdrop, confetti",
    "neon": "plain purple studio backdrop, neon grid",
    "terrazzo": "plain pink studio backdrop, terrazzo",
    "stripes": "green gradient studio backdrop, diagonal stripes",
}
LARGEST: Final = 500_000  # bytes
_COLUMNS, _TILE, _GAP, _LABEL = 6, 96, 3, 132  # tiles and pixels
_FIRST: Final = 3000  # number of the first scene: none that a measure has seen


class Row(NamedTuple):
    label: str
    tiles: Sequence[Image.Image]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m worker.demo.contact_sheet", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--demo", type=Path, help="folder of a `farm demo`")
    parser.add_argument("--photographs", type=Path, help="with --demo: write them alone, without labels")
    parser.add_argument("--checkpoint", type=Path, default=shipped.CHECKPOINT)
    parser.add_argument("--loras", type=Path, default=shipped.LORAS)
    given = parser.parse_args()
    if given.photographs:
        given.photographs.write_bytes(png(sheet(list(photographs(given.demo)), tile=150, label=0)))
        return 0
    rows = [*(photographs(given.demo) if given.demo else ()), *scenes(Painter(given.checkpoint, given.loras))]
    data = png(sheet(rows))
    if len(data) > LARGEST:
        sys.stderr.write(f"{len(data)} bytes, over {LARGEST}; choose fewer rows or smaller tiles.\n")
        return 1
    given.out.write_bytes(data)
    sys.stdout.write(f"{given.out}: {len(data)} bytes\n")
    return 0


def scenes(painter: Painter) -> Iterator[Row]:
    """The same products before every backdrop, then in every brand's look."""
    given = [make_scene(series(SEED, "quality"), _FIRST + column, mask="around") for column in range(_COLUMNS)]
    yield Row("given", [_with_mask(scene) for scene in given])
    for look, prompt in [*((None, prompt) for prompt in PROMPTS), *BRANDS.items()]:
        orders = [Order(scene, prompt, seed=column) for column, scene in enumerate(given)]
        painted = painter.paint(orders, look)
        tiles = [_image(pasted(*edit)) for edit in zip(orders, painted, strict=True)]
        yield Row(f"{prompt} [{look} LoRA]" if look else prompt, tiles)


def photographs(folder: Path) -> Iterator[Row]:
    """Photographs and their edits, from the results of a demo: one of each photograph that keeps its subject."""
    results = [json.loads(line) for line in (folder / "results.ndjson").read_text("utf-8").splitlines()]
    kept = [result for result in results if "-keep-" in result["custom_id"] and result["outputs"]]
    chosen: dict[str, dict] = {}
    for result in kept:
        chosen.setdefault(result["custom_id"].split("-")[1], result)
    shown = list(chosen.values())[:_COLUMNS]
    yield Row("photographs", [_tile(result["image"]) for result in shown])
    yield Row("edited by farm demo", [_tile(result["outputs"][0]["uri"]) for result in shown])


def _tile(uri: str) -> Image.Image:
    with Image.open(uri.removeprefix("file://")) as picture:
        return picture.convert("RGB")


def _with_mask(scene: Scene) -> Image.Image:
    """What is to be repainted under a grey veil."""
    picture = scene.picture / 255
    return _image(np.where(scene.mask > 0, 0.35 * picture + 0.65 * 0.5, picture))


def _image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(1, 2, 0))


def sheet(rows: Sequence[Row], *, tile: int = _TILE, label: int = _LABEL) -> Image.Image:
    """The rows below one another, each with its label at the left in a column of `label` px (0: without)."""
    step = tile + _GAP
    canvas = Image.new("RGB", (label + _COLUMNS * step, len(rows) * step), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for number, row in enumerate(rows):
        if label:
            pen.multiline_text((4, number * step + 6), _wrapped(row.label, font), "black", font)
        for column, picture in enumerate(row.tiles):
            small = ImageOps.fit(picture, (tile, tile), Image.Resampling.LANCZOS)
            canvas.paste(small, (label + column * step, number * step))
    return canvas


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= _LABEL - 10:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)


def png(picture: Image.Image) -> bytes:
    """In 256 colours, chosen for this picture: a third of the size, and hardly to be seen."""
    buffer = BytesIO()
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


if __name__ == "__main__":
    sys.exit(main())
