"""The README's programs, run as they are written."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image, ImageDraw

from tests.integration.quick_farm import QuickFarm

README = (Path(__file__).parents[2] / "README.md").read_text()


def program(heading: str) -> str:
    """The first Python block below a heading."""
    found = re.search(rf"^## {re.escape(heading)}\n.*?^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found[1]


def test_a_newcomer_s_fifteen_lines_edit_a_folder_of_photos(tmp_path):
    lines = [line for line in program("A folder of photos").splitlines() if line.strip()]
    assert len(lines) <= 15
    with QuickFarm(tmp_path) as farm:
        folder = farm.inputs / "photos"
        folder.mkdir()
        for number in range(4):
            Image.new("RGB", (96, 64), (40 * number, 90, 30)).save(folder / f"sku-{number}.png")
            mask = Image.new("L", (96, 64), 0)
            ImageDraw.Draw(mask).rectangle((20, 20, 60, 40), fill=255)
            mask.save(folder / f"sku-{number}-mask.png")
        farm.wait_ready()
        done = subprocess.run(
            [sys.executable, "-c", program("A folder of photos")],
            cwd=farm.inputs, env=farm.client_environment(), capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [line[:2] for line in told] == [[f"sku-{number}", "succeeded"] for number in range(4)]
    for _, _, uri in told:
        before = Image.open(folder / Path(uri).name).convert("RGB")
        after = Image.open(uri.removeprefix("file://")).convert("RGB")
        assert after.getpixel((0, 0)) == before.getpixel((0, 0)) and after.getpixel((40, 30)) != before.getpixel(
            (40, 30)
        )


def test_the_test_of_one_s_own_program_says_what_its_comment_says():
    code = program("Test your own program")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == code.rstrip().rpartition("# ")[2]
