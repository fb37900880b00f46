"""The sheet of pictures: every tile in its place, labels that fit, a file that a README can carry."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageFont

from worker.demo import contact_sheet as sheets


def test_tiles_stand_in_rows_beside_their_labels() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    rows = [sheets.Row("a row", [Image.new("RGB", (60, 40), colour) for colour in colours[: 1 + n]]) for n in range(3)]
    picture = sheets.sheet(rows)
    step = sheets._TILE + sheets._GAP
    assert picture.size == (sheets._LABEL + sheets._COLUMNS * step, 3 * step)
    for row in range(3):
        for column in range(3):
            shown = picture.getpixel((sheets._LABEL + column * step + 48, row * step + 48))
            assert shown == (colours[column] if column <= row else (255, 255, 255))
    assert Image.open(BytesIO(sheets.png(picture))).convert("RGB").getpixel((sheets._LABEL + 9, 9)) == (255, 0, 0)


def test_no_line_of_a_label_is_wider_than_its_column() -> None:
    font = ImageFont.load_default(12)
    for prompt in (*sheets.PROMPTS, *sheets.BRANDS.values()):
        lines = sheets._wrapped(prompt, font).split("\n")
        assert " ".join(lines) == prompt
        assert all(font.getlength(line) <= sheets._LABEL - 10 for line in lines)


def test_photographs_of_a_demo_come_once_each_beside_their_edits(tmp_path: Path) -> None:
    results = []
    for number, (photo, what) in enumerate([("cup", "keep"), ("cup", "keep"), ("cat", "edit"), ("cat", "keep")]):
        before, after = (tmp_path / f"{number}-{end}.png" for end in ("before", "after"))
        Image.new("RGB", (8, 8), (number, 0, 0)).save(before)
        Image.new("RGB", (8, 8), (number, 255, 0)).save(after)
        name = f"{number:03}-{photo}-{what}-it"
        results.append({"custom_id": name, "image": f"file://{before}", "outputs": [{"uri": f"file://{after}"}]})
    (tmp_path / "results.ndjson").write_text("".join(json.dumps(result) + "\n" for result in results))
    given, edited = sheets.photographs(tmp_path)
    assert [np.asarray(tile)[0, 0].tolist() for tile in given.tiles] == [[0, 0, 0], [3, 0, 0]]
    assert [np.asarray(tile)[0, 0].tolist() for tile in edited.tiles] == [[0, 255, 0], [3, 255, 0]]
    without_labels = sheets.sheet([given, edited], tile=20, label=0)
    assert without_labels.size == (sheets._COLUMNS * (20 + sheets._GAP), 2 * (20 + sheets._GAP))
    assert without_labels.getpixel((20 + sheets._GAP, 20 + sheets._GAP)) == (3, 255, 0)
