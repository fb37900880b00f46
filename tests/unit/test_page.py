"""The demo's page: whole without anything beside it, escaped, small, and right about every job."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from producer.markup import Markup, element, fragment
from producer.page import write_page
from producer.photos import demo_scenes
from producer.thumbnails import link, mask_thumbnail, picture_thumbnail

EVIL = '</script><script>alert(1)</script><img src=x onerror="alert(2)">\'"&amp;§title ${x} javascript:'
VOID = {"meta", "img", "input", "br"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str = "", class_: str = "") -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                if tag in ("", child.tag) and (not class_ or class_ in (child.attributes.get("class") or "").split()):
                    yield child
                yield from child.all(tag, class_)

    def one(self, tag: str = "", class_: str = "") -> Node:
        (found,) = self.all(tag, class_)
        return found

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class Dom(HTMLParser):
    """Fails on a tag that is left open or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.root = Node("", {})
        self.open = [self.root]
        self.feed(text)
        self.close()
        assert self.open == [self.root], f"left open: {self.open[-1].tag}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, dict(attrs))
        assert len(node.attributes) == len(attrs), f"an attribute twice in {tag}"
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def picture(path: Path, size: tuple[int, int] = (640, 480), mode: str = "RGB") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = Image.effect_noise(size, 90)
    (Image.merge("RGB", [noise, noise.rotate(90), noise.rotate(180)]) if mode == "RGB" else noise).save(path)
    return f"file://{path}"


def result(folder: Path, number: int = 1, **changes: Any) -> dict[str, Any]:
    name = changes.get("custom_id", f"sku-{number}")
    safe = re.sub(r"\W", "-", name)
    return {
        "custom_id": name,
        "status": "succeeded",
        "image": picture(folder / "inputs" / f"{safe}.png"),
        "mask": picture(folder / "inputs" / f"{safe}-mask.png", mode="L"),
        "outputs": [{"uri": picture(folder / "pictures" / f"{safe}.png"), "sha256": "0" * 64}],
        "error": None,
        "timings": {"fetch": 0.004, "denoise": 1.5, "store": 0.25, "total": 1.8},
        "loras": [{"path": "file:///models/cobalt.safetensors", "scale": 0.8}],
        "prompt": "white marble table top",
        "seed": 42,
        "receipt": {"max_abs_diff_outside": 0, "pixels_outside": 92160},
        **changes,
    }


def failed(folder: Path, number: int = 2, **changes: Any) -> dict[str, Any]:
    error = {"code": "MaskEmpty", "message": "The mask has no white pixel; nothing would be edited."}
    gone: dict[str, Any] = {"outputs": [], "receipt": None, "timings": {"fetch": 0.1}, "loras": []}
    return result(folder, number, status="failed", error=error, **(gone | changes))


def dom(folder: Path, rows: list[dict[str, Any]], **summary: object) -> Node:
    path = folder / "index.html"
    write_page(path, rows, title="A run", summary=summary)
    return Dom(path.read_text("utf-8")).root


@pytest.fixture
def page(tmp_path: Path) -> Node:
    rows = [result(tmp_path), failed(tmp_path)]
    return dom(tmp_path, rows, jobs=2000, lora_swap_median_ms=1.5, images_per_second=None)


def test_a_job_is_shown_with_what_there_is_to_know(page: Node) -> None:
    card = next(page.all("article"))
    assert card.one("h2").text == "sku-1"
    assert card.one("span", "badge").text == "succeeded"
    assert card.one("p", "prompt").text == "white marble table top"
    assert [caption.text for caption in card.all("figcaption")] == ["Before", "Mask", "After"]
    words = card.one("dl").text
    for expected in ("0 changed of 92,160 pixels", "cobalt × 0.8", "Seed42", "1.80 s", "denoise1.50 s", "fetch4.0 ms"):
        assert expected in words
    assert "total" not in words
    widths = [
        float(re.search(r"width: ([\d.]+)%", s.attributes["style"])[1]) for s in card.one("div", "bar").all("span")
    ]
    assert sum(widths) == pytest.approx(100, abs=0.1) and widths[1] == max(widths)


def test_a_failed_job_says_why_and_shows_what_it_was_given(page: Node) -> None:
    card = list(page.all("article"))[1]
    assert card.one("span", "badge").text == "failed"
    assert card.one("p", "error").text == "MaskEmpty The mask has no white pixel; nothing would be edited."
    assert [image.attributes["class"] for image in card.all("img")] == ["before", "mask"]
    assert "no picture" in card.one("div", "pictures").text
    assert not list(card.all("div", "compare"))


def test_the_head_has_the_numbers_and_the_promise(page: Node) -> None:
    head = page.one("header")
    assert page.one("title").text == head.one("h1").text == "A run"
    numbers = {entry.one("dt").text: entry.one("dd").text for entry in head.one("dl").all("div")}
    assert numbers == {"Jobs": "2,000", "LoRA swap median": "1.5 ms", "Images per second": "–"}
    assert head.one("p", "kept").text == (
        "Outside the masks not one pixel changed: measured in the written files of 1 of 1 succeeded jobs."
    )


def test_a_broken_promise_is_shown_not_hidden(tmp_path: Path) -> None:
    bad = result(tmp_path, 2, receipt={"max_abs_diff_outside": 7, "pixels_outside": 10})
    page = dom(tmp_path, [result(tmp_path, 1), bad, result(tmp_path, 3, receipt=None)])
    assert page.one("header").one("p", "broken").text == (
        "1 jobs changed pixels outside the mask, by up to 7 of 255: "
        "measured in the written files of 2 of 3 succeeded jobs."
    )
    assert list(page.all("article"))[1].one("span", "broken").text == "differs by up to 7 of 255"
    assert not list(page.all("p", "kept"))


def test_without_a_receipt_nothing_is_promised(tmp_path: Path) -> None:
    page = dom(tmp_path, [failed(tmp_path)])
    assert not list(page.all("p", "promise"))
    assert "Outside the mask" not in page.one("article").text


def test_filters_offer_what_there_is_and_cards_carry_it(page: Node) -> None:
    offered = {
        select.attributes["name"]: [option.attributes["value"] for option in select.all("option")]
        for select in page.all("select")
    }
    assert offered == {"status": ["", "failed", "succeeded"], "lora": ["", "cobalt"]}
    cards = list(page.all("article"))
    assert [card.attributes["data-status"] for card in cards] == ["succeeded", "failed"]
    assert [json.loads(card.attributes["data-loras"] or "") for card in cards] == [["cobalt"], []]


def test_nothing_comes_from_outside_and_only_our_script_runs(page: Node) -> None:
    for node in page.all():
        for name in ("src", "srcset", "poster", "data", "action"):
            value = node.attributes.get(name)
            assert value is None or value.startswith("data:image/"), (node.tag, name, value)
        assert not any(name.startswith("on") for name in node.attributes)
        assert node.tag not in ("link", "iframe", "object", "embed", "base")
    assert "url(" not in page.one("style").text and "@import" not in page.one("style").text
    (policy,) = [m.attributes["content"] for m in page.all("meta") if "http-equiv" in m.attributes]
    script = page.one("script").text
    assert policy and "default-src 'none'" in policy
    assert base64.b64encode(sha256(script.encode()).digest()).decode() in policy
    assert "fetch(" not in script and "innerHTML" not in script


def test_every_picture_has_a_text_and_every_control_a_name(page: Node) -> None:
    alts = [image.attributes["alt"] for image in page.all("img")]
    assert all(alts) and len(set(alts)) == len(alts)
    assert all(select for label in page.all("label") for select in label.all("select"))
    assert page.one("html").attributes["lang"] == "en"
    assert page.one("nav").attributes["aria-label"]
    script = page.one("script").text
    assert 'type: "range"' in script and "aria-label" in script and "aria-valuetext" in script


def test_light_dark_and_narrow_are_provided_for(page: Node) -> None:
    style = page.one("style").text
    assert "prefers-color-scheme: dark" in style and "max-width: 640px" in style
    used, defined = set(re.findall(r"var\((--[\w-]+)", style)), set(re.findall(r"(--[\w-]+):", style))
    assert used - defined == {"--ratio"}  # set on the element
    assert "width=device-width" in str([m.attributes for m in page.all("meta")])


@pytest.mark.parametrize(
    "where", ["custom_id", "prompt", "status", "lora", "code", "message", "title", "summary", "stage"]
)
def test_hostile_text_stays_text(tmp_path: Path, where: str) -> None:
    row = failed(tmp_path)
    match where:
        case "custom_id" | "prompt" | "status":
            row[where] = EVIL
        case "lora":
            row["loras"] = [{"path": f"s3://b/{EVIL}.safetensors", "scale": 1.0}]
        case "code" | "message":
            row["error"] = {**row["error"], where: EVIL}
        case "stage":
            row["timings"] = {EVIL: 1.0}
    path = tmp_path / "index.html"
    write_page(
        path,
        [row],
        title=EVIL if where == "title" else "A run",
        summary={EVIL: EVIL} if where == "summary" else {},
    )
    page = Dom(path.read_text("utf-8")).root
    assert len(list(page.all("script"))) == 1 and "alert" not in page.one("script").text
    assert all(image.attributes["src"].startswith("data:") for image in page.all("img"))
    assert not [node for node in page.all() if any(name.startswith("on") for name in node.attributes)]
    shown = page.text + json.dumps([node.attributes for node in page.all()])
    assert "alert(2)" in shown  # it was there, as text


@pytest.mark.parametrize(
    "uri", ["javascript:alert(1)", "data:text/html,x", "https://evil/x.png", "s3://b/k.png", "file:///../x"]
)
def test_an_address_that_a_page_must_not_open_is_no_link(tmp_path: Path, uri: str) -> None:
    row = result(tmp_path, image=uri, outputs=[{"uri": uri}])
    page = dom(tmp_path, [row])
    assert [a.attributes["href"] for a in page.all("a")] == ["./inputs/sku-1-mask.png"]
    assert "not readable here" in page.one("article").text


def test_the_folder_can_be_moved(tmp_path: Path) -> None:
    home = tmp_path / "one folder"
    awkward = picture(home / "pictures" / "a b#c?d%20:é.png")
    page = dom(home, [result(home, outputs=[{"uri": awkward}])])
    moved = tmp_path / "other"
    shutil.move(home, moved)
    targets = [a.attributes["href"] for a in page.all("a")]
    assert targets[-1] == "./pictures/a%20b%23c%3Fd%2520%3A%C3%A9.png"
    assert (moved / "inputs" / "sku-1.png").is_file() and targets[0] == "./inputs/sku-1.png"
    assert str(tmp_path) not in (moved / "index.html").read_text("utf-8")


def test_a_picture_elsewhere_on_this_machine_is_linked_there(tmp_path: Path) -> None:
    outside = picture(tmp_path / "elsewhere" / "x.png")
    assert link(outside, tmp_path / "home") == outside
    assert link(outside, tmp_path) == "./elsewhere/x.png"


def test_sixty_photographs_stay_under_four_megabytes(tmp_path: Path) -> None:
    rows = []
    for scene in demo_scenes(12):
        uris = {}
        for name, made in (("image", scene.image), ("mask", scene.mask), ("after", ImageOps.invert(scene.image))):
            made.save(tmp_path / f"{scene.custom_id}-{name}.png", compress_level=1)
            uris[name] = f"file://{tmp_path}/{scene.custom_id}-{name}.png"
        rows.append(result(tmp_path, image=uris["image"], mask=uris["mask"], outputs=[{"uri": uris["after"]}]))
    dom(tmp_path, rows * 5)
    assert (tmp_path / "index.html").stat().st_size < 4_000_000


def test_more_results_get_smaller_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (400, 300), "teal").save(tmp_path / "flat.png")
    flat = f"file://{tmp_path}/flat.png"
    row = result(tmp_path, image=flat, mask=None, outputs=[])
    one = next(dom(tmp_path, [row]).all("img")).attributes["src"]
    many = next(dom(tmp_path, [row] * 240).all("img")).attributes["src"]
    sizes = [Image.open(BytesIO(base64.b64decode(src.partition(",")[2]))).size for src in (one, many)]
    assert sizes == [(360, 270), (180, 135)]


def test_several_outputs_are_all_shown(tmp_path: Path) -> None:
    outputs = [{"uri": picture(tmp_path / f"{number}.png")} for number in range(3)]
    page = dom(tmp_path, [result(tmp_path, outputs=outputs)])
    assert [c.text for c in page.all("figcaption")] == ["Before", "Mask", "After 1", "After 2", "After 3"]


def test_an_empty_run_gives_a_page(tmp_path: Path) -> None:
    assert not list(dom(tmp_path, []).all("article"))


def test_a_result_with_little_in_it_is_shown(tmp_path: Path) -> None:
    bare = {"custom_id": "x", "status": "expired", "image": "s3://b/k.png", "outputs": None}
    page = dom(tmp_path, [bare])
    assert page.one("p", "empty").text == "no prompt"
    assert "LoRAnone" in page.one("dl", "facts").text


def test_thumbnails_follow_orientation_and_lie_on_white(tmp_path: Path) -> None:
    turned = Image.new("RGB", (80, 40))
    exif = turned.getexif()
    exif[0x0112] = 6  # a quarter turn
    turned.save(tmp_path / "turned.jpg", exif=exif)
    small = picture_thumbnail(f"file://{tmp_path}/turned.jpg", 20)
    assert small and (small.width, small.height) == (40, 80)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    clear = picture_thumbnail(f"file://{tmp_path}/clear.png", 20)
    assert clear and Image.open(BytesIO(base64.b64decode(clear.data.partition(",")[2]))).getpixel((4, 4)) == (255,) * 3


def test_what_is_no_picture_leaves_a_gap(tmp_path: Path) -> None:
    (tmp_path / "words.png").write_bytes(b"these are words")
    for uri in (f"file://{tmp_path}/words.png", f"file://{tmp_path}/absent.png", f"file://{tmp_path}"):
        assert picture_thumbnail(uri, 20) is None and mask_thumbnail(uri, 20) is None


def test_markup_escapes_text_and_attributes() -> None:
    assert element("p", "<b> & '", class_='"x"') == '<p class="&quot;x&quot;">&lt;b&gt; &amp; &#x27;</p>'
    assert element("input", hidden=True, disabled=False, title=None, data_x="1") == '<input hidden data-x="1">'
    assert fragment(Markup("<i>"), None, "<i>") == "<i>&lt;i&gt;"
