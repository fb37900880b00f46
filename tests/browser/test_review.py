"""The report in a real browser: offline, quick with 1,000 results, reviewed by keyboard, and nothing lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from farm.schemas import ErrorInfo, LoraRef
from farm.states import JobState
from producer.report import write_report
from producer.report.source import Pictures
from tests.browser.conftest import Opened
from tests.browser.runs import catalogue

EVIL = '</script><!--<script>alert(1)</script><img src=x onerror="alert(2)">\'"&amp;§data ${x}'


def ids(page: Page) -> list[str]:
    """The custom_ids in sight, from the top."""
    rows = page.locator("[role=option]").all()
    return [row.locator(".id").inner_text() for row in sorted(rows, key=lambda row: int(row.get_attribute("data-at")))]


def chosen(page: Page) -> str:
    return page.locator("#name").inner_text()


def exported(page: Page) -> list[dict]:
    with page.expect_download() as download:
        page.locator("#export").click()
    assert download.value.suggested_filename == "review.ndjson"
    return [json.loads(line) for line in Path(download.value.path()).read_text().splitlines()]


def test_a_thousand_results_open_without_a_request_or_a_complaint(opened: Opened) -> None:
    page = opened.page
    expect(page.locator("#shown")).to_have_text("1,000 results")
    expect(page.locator(".about")).to_contain_text("930 succeeded, 50 failed, 20 canceled")
    assert ids(page)[0] == "sku-10000" and chosen(page) == "sku-10000"
    for name in ("both", "difference", "slider"):
        page.locator(f"[data-view={name}]").click()
    page.locator("#help").click()
    page.locator("#keys-close").click()
    assert (opened.fetched, opened.complaints) == ([], [])


def test_only_what_is_in_sight_has_elements_and_every_result_can_be_scrolled_to(opened: Opened) -> None:
    page = opened.page
    seen = page.evaluate("""async () => {
      const box = document.getElementById("list"), draw = list.draw;
      let drawn = 0, most = 0;
      list.draw = (row) => { drawn++; return draw(row); };
      const scrolledTo = async (top) => {
        drawn = 0;
        box.scrollTop = top;
        await new Promise((shown) => requestAnimationFrame(() => requestAnimationFrame(shown)));
        return drawn;
      };
      for (let step = 0; step < 60; step++) {
        await scrolledTo(step / 59 * box.scrollHeight);
        most = Math.max(most, drawn, box.querySelectorAll("[role=option]").length);
      }
      const aRowUp = await scrolledTo(box.scrollTop - ROW);
      drawn = 0;
      list.paint();
      return { most, aRowUp, again: drawn };
    }""")
    assert 0 < seen["most"] < 40
    assert (seen["aRowUp"], seen["again"]) == (1, 0)  # what stays in sight stays
    assert ids(page)[-1] == "sku-10999"
    assert page.locator("[data-at='999'] img").evaluate("i => i.decode().then(() => i.naturalWidth)") > 0


def test_filters_search_and_sort_agree_with_the_results(opened: Opened) -> None:
    page = opened.page
    results = list(catalogue(opened.path.parent / "pictures", 1000, side=160))

    def shown() -> int:
        return int(page.locator("#shown").inner_text().split()[0].replace(",", ""))

    def expected(fits) -> int:
        return sum(map(bool, map(fits, results)))

    scored = [r for r in results if r.outputs]
    for name, value, count in (
        ("status", "failed", expected(lambda r: r.status == "failed")),
        ("status", "failed\nMaskEmpty", expected(lambda r: r.error and r.error.code == "MaskEmpty")),
        ("lora", "linen", expected(lambda r: any("linen" in lora.path for lora in r.loras))),
        ("lora", "\n", expected(lambda r: not r.loras)),
        ("score", "review", expected(lambda r: r.needs_review)),
        ("score", "0.5:0.75", sum(0.5 < r.outputs[0].scores.worst <= 0.75 for r in scored)),
        ("score", "none", len(results) - len(scored)),
    ):
        page.locator(f"[name={name}]").select_option(value)
        assert shown() == count > 0, (name, value)
        page.locator(f"[name={name}]").select_option("")
    page.locator("[name=search]").fill("SKU-1001")
    assert shown() == 10 and ids(page)[0] == "sku-10010" and chosen(page) == "sku-10010"
    page.locator("[name=search]").fill("not there")
    page.locator("#clear").click()
    assert shown() == 1000
    page.locator("[name=sort]").select_option("worst")
    first = max(scored, key=lambda r: r.outputs[0].scores.worst)
    assert ids(page)[0] == first.custom_id
    page.locator("[name=sort]").select_option("slow")
    assert ids(page)[0] == max(results, key=lambda r: r.timings["total"]).custom_id


def test_a_review_by_keyboard_is_kept_undone_and_exported(opened: Opened) -> None:
    page = opened.page
    for key in ("a", "r", "j", "a", "ArrowUp", "ArrowUp", "x"):
        page.keyboard.press(key)
    # 0 accepted; 1 rejected; 2 passed over; 3 accepted, so on to 4; two up to 2, whose decision is none
    assert chosen(page) == "sku-10002"
    expect(page.locator("#progress-words")).to_have_text("3 of 1,000 reviewed, 1 rejected")
    page.keyboard.press("n")
    assert chosen(page) == "sku-10004"
    page.keyboard.press("a")
    page.keyboard.press("u")
    assert chosen(page) == "sku-10004"
    expect(page.locator("#said")).to_have_text("sku-10004 as before")
    lines = exported(page)
    assert [(line["custom_id"], line["decision"]) for line in lines] == [
        ("sku-10000", "accept"), ("sku-10001", "reject"), ("sku-10003", "accept"),
    ]  # fmt: skip
    assert set(lines[0]) == {"custom_id", "job_id", "generation", "decision", "decided_at"}
    assert lines[1]["job_id"] == f"{1:032x}" and lines[1]["generation"] == 0
    opened.page.close()
    page = opened.open()
    expect(page.locator("#progress-words")).to_have_text("3 of 1,000 reviewed, 1 rejected")
    expect(page.locator("[role=option]").nth(1).locator(".mark")).to_contain_text("rejected")
    page.locator("[name=decision]").select_option("open")
    expect(page.locator("#shown")).to_have_text("997 of 1,000 results")
    page.locator("#list").focus()
    page.keyboard.press("r")  # it leaves the list that shows what is open; the next one is chosen
    assert chosen(page) == "sku-10004" and ids(page)[0] == "sku-10004"
    assert opened.complaints == []


def test_all_that_is_shown_and_open_is_accepted_at_once_and_taken_back_at_once(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("r")
    page.locator("[name=lora]").select_option("linen")
    button = page.locator("#accept-shown")
    count = int(button.inner_text().split()[1])
    button.click()
    assert len(exported(page)) == count + 1
    assert page.locator("#accept-shown").is_disabled()
    page.locator("#undo").click()
    assert [line["decision"] for line in exported(page)] == ["reject"]


def test_two_tabs_know_of_each_other(opened: Opened) -> None:
    other = opened.open()
    opened.page.keyboard.press("a")
    expect(other.locator("#progress-words")).to_have_text("1 of 1,000 reviewed")


def test_the_slider_moves_by_keyboard_and_by_mouse(opened: Opened) -> None:
    page = opened.page
    slider = page.get_by_role("slider", name="Before and after of sku-10000")
    at = "f => getComputedStyle(f).getPropertyValue('--at')"
    page.keyboard.press("ArrowLeft")
    assert page.locator(".compare").evaluate(at) == "45%"
    expect(slider).to_have_attribute("aria-valuetext", "45 % before, 55 % after")
    box = page.locator(".compare").bounding_box()
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + 20)
    assert 75 <= float(page.locator(".compare").evaluate(at).rstrip("%")) <= 85
    page.keyboard.press("j")  # from the slider, too
    assert chosen(page) == "sku-10001"


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_nothing_sticks_out_at_any_width(browser: Browser, thousand, width: int) -> None:
    opened = Opened(browser, thousand.path, viewport={"width": width, "height": 844})
    page = opened.page
    fits = """() => {
      const { scrollWidth, scrollHeight } = document.documentElement;
      return scrollWidth <= innerWidth && scrollHeight <= innerHeight;
    }"""
    assert page.evaluate(fits)
    if width < 900:
        assert not page.locator(".detail").is_visible()
        page.locator("[role=option]").nth(2).click()
        assert page.locator("#accept").is_visible() and page.evaluate(fits)
        assert page.locator("#list").evaluate("list => list.closest('[inert]') !== null")
        page.locator("#accept").click()
        assert chosen(page) == "sku-10003"
        page.locator("#close").click()
        assert not page.locator(".detail").is_visible()
    opened.context.close()


# (text, its background) of everything that is in sight, as WCAG 2.2 (1.4.3) counts contrast
_CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => [r, g, b].map((v) => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, place) => sum + v * [.2126, .7152, .0722][place], 0);
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!text || !element.checkVisibility() || element.closest(".unseen, script, style, .word, :disabled")) continue;
    const back = (e) => getComputedStyle(e).backgroundColor;
    let behind = element;
    while (behind.parentElement && rgba(back(behind))[3] < 255) behind = behind.parentElement;
    const [a, b] = [getComputedStyle(element).color, back(behind)].map((colour) => luminance(rgba(colour)));
    found.push([(Math.max(a, b) + .05) / (Math.min(a, b) + .05), element.textContent.slice(0, 40)]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_read_and_every_control_has_a_name(browser: Browser, thousand, scheme: str) -> None:
    opened = Opened(browser, thousand.path, color_scheme=scheme)
    page = opened.page
    for key in ("a", "r", "j"):
        page.keyboard.press(key)
    contrasts = page.evaluate(_CONTRASTS)
    assert len(contrasts) > 50
    assert [entry for entry in contrasts if entry[0] < 4.5] == []
    nameless = page.evaluate("""() => [...document.querySelectorAll("button, input, select, progress")].filter(
      (e) => !(e.textContent.trim() || e.ariaLabel || e.labels?.length)).map((e) => e.outerHTML)""")
    assert nameless == []
    assert page.locator("[role=listbox]").get_attribute("aria-activedescendant") == "option-3"
    opened.context.close()


def test_a_browser_that_keeps_nothing_says_so(browser: Browser, thousand) -> None:
    opened = Opened(browser, thousand.path)
    opened.context.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('full') }")
    page = opened.open()
    page.keyboard.press("a")
    expect(page.locator("#progress-words")).to_have_text("1 of 1,000 reviewed – not kept, export them")
    assert len(exported(page)) == 1
    opened.context.close()


def test_hostile_words_stay_words(browser: Browser, tmp_path: Path) -> None:
    (good,) = catalogue(tmp_path / "pictures", 1, side=64)
    bad = good.model_copy(
        update={
            "custom_id": EVIL, "job_id": EVIL, "prompt": EVIL, "warnings": (EVIL,), "status": JobState.FAILED,
            "loras": (LoraRef(path=f"s3://bucket/{EVIL.replace('/', '')}.safetensors"),),
            "error": ErrorInfo(code=EVIL, message=EVIL), "image": "https://evil.example/x.png",
        }
    )  # fmt: skip
    written = write_report(tmp_path / "report.html", [good, bad], title=EVIL, pictures=Pictures(lambda: None))
    opened = Opened(browser, written.path)
    page = opened.page
    assert page.title() == EVIL
    page.keyboard.press("j")
    assert chosen(page) == EVIL
    page.keyboard.press("a")
    assert [line["job_id"] for line in exported(page)] == [EVIL]
    assert page.locator("#words .prompt").inner_text() == EVIL
    assert (opened.fetched, opened.complaints) == ([], [])
    opened.context.close()


def test_pages_and_their_index_share_one_review(browser: Browser, tmp_path: Path) -> None:
    results = list(catalogue(tmp_path / "pictures", 25, side=64))
    written = write_report(tmp_path, results, title="Big", pictures=Pictures(lambda: None), page_size=10)
    assert (written.pages, written.results) == (3, 25)
    opened = Opened(browser, written.path)
    page = opened.page
    page.get_by_role("link", name="Page 2").click()
    expect(page.locator("#name")).to_have_text("sku-10010")
    page.keyboard.press("a")
    page.get_by_role("link", name="All pages").click()
    page.get_by_role("link", name="Page 3").click()
    expect(page.locator("#name")).to_have_text("sku-10020")
    for _ in range(5):
        page.keyboard.press("r")
    page.get_by_role("link", name="All pages").click()
    expect(page.locator("#progress-words")).to_have_text("6 of 25 reviewed")
    expect(page.locator(".pages li").nth(2)).to_contain_text("✓ reviewed")
    assert [line["custom_id"] for line in exported(page)] == ["sku-10010", *(f"sku-{n}" for n in range(10020, 10025))]
    assert opened.complaints == []
    opened.context.close()


def test_without_its_script_the_page_says_what_there_is(browser: Browser, tmp_path: Path) -> None:
    results = list(catalogue(tmp_path / "pictures", 8, side=64))
    written = write_report(tmp_path, results, title="Plain", pictures=Pictures(lambda: None))
    opened = Opened(browser, written.path, java_script_enabled=False)
    text = opened.page.locator("noscript").inner_text()
    assert "sku-10007" in text and "MaskEmpty" in text and "74%" in text
    opened.context.close()
