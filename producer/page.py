"""One static HTML file that shows a run: before, mask and after of every job, and what there is to know about it.

It opens from `file://`, asks for nothing outside itself (a content security policy says so to the browser), and still
shows everything without its script. Small copies of the pictures lie in the page; the whole ones are linked, by
relative addresses where they lie below the page's folder, so that the folder can be moved.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from producer.markup import Markup, element, fragment
from producer.thumbnails import Thumbnail, link, mask_thumbnail, picture_thumbnail

Result = Mapping[str, Any]

_SIDE: Final = 360  # pixels; a picture then takes some 15 KB
_FULL_SIZED: Final = 60  # so many results fit into 4 MB at that size; more get smaller pictures
_COLOURS: Final = 6  # of the time bar


class _Page(Template):
    delimiter = "§"  # `$` and `%` are CSS's and JavaScript's


def write_page(path: Path, results: Sequence[Result], *, title: str, summary: Mapping[str, object]) -> None:
    """Write the page of `results` to `path`, replacing what is there.

    A result is a line of `results.ndjson` as a mapping: custom_id, status, image, mask, outputs, error, timings, loras,
    prompt, seed, receipt. `summary` is shown as it comes: name → number, text or None. Pictures that are not on this
    machine (`s3://`) or cannot be read leave a labelled gap.
    """
    side = _SIDE if len(results) <= _FULL_SIZED else max(96, int(_SIDE * (_FULL_SIZED / len(results)) ** 0.5))
    folder = path.absolute().parent
    script = _asset("page.js")
    page = _Page(_asset("page.html")).substitute(
        title=fragment(title),
        promise=_promise(results),
        numbers=element("dl", *(_number(name, value) for name, value in summary.items()), class_="numbers"),
        filters=_filters(results),
        cards="\n".join(_card(result, folder, side) for result in results),
        footer=fragment(
            f"{len(results)} results. This page is one file; keep it in its folder to open whole pictures."
        ),
        script=script,
        script_hash="sha256-" + base64.b64encode(sha256(script.encode()).digest()).decode(),
    )
    path.write_text(page, encoding="utf-8")


def _asset(name: str) -> str:
    return (files("producer") / name).read_text("utf-8")


# The head of the page


def _promise(results: Sequence[Result]) -> Markup:
    """What the receipts say together."""
    worst = [result["receipt"]["max_abs_diff_outside"] for result in results if result.get("receipt")]
    if not worst:
        return fragment()
    changed = sum(difference > 0 for difference in worst)
    measured = f"measured in the written files of {len(worst)} of {sum(map(_succeeded, results))} succeeded jobs."
    if changed == 0:
        return element("p", f"Outside the masks not one pixel changed: {measured}", class_="promise kept")
    words = f"{changed} jobs changed pixels outside the mask, by up to {max(worst)} of 255: {measured}"
    return element("p", words, class_="promise broken")


def _succeeded(result: Result) -> bool:
    return bool(result["status"] == "succeeded")


def _number(name: str, value: object) -> Markup:
    words = name.removesuffix("_ms").replace("_", " ").replace("lora", "LoRA")
    shown = "–" if value is None else f"{value:,}" if isinstance(value, int | float) else str(value)
    unit = " ms" if name.endswith("_ms") and value is not None else ""
    return element("div", element("dt", words[:1].upper() + words[1:]), element("dd", shown + unit))


def _filters(results: Sequence[Result]) -> Markup:
    statuses = sorted({result["status"] for result in results})
    loras = sorted({name for result in results for name, _ in _loras(result)})
    return fragment(_choice("Status", "status", statuses), _choice("LoRA", "lora", loras))


def _choice(label: str, name: str, values: Sequence[str]) -> Markup:
    options = (element("option", value, value=value) for value in values)
    return element("label", label, element("select", element("option", "all", value=""), *options, name=name))


# One result


def _card(result: Result, folder: Path, side: int) -> Markup:
    before = picture_thumbnail(result["image"], side)
    outputs = [(output["uri"], picture_thumbnail(output["uri"], side)) for output in result.get("outputs") or ()]
    loras = json.dumps([name for name, _ in _loras(result)])
    return element(
        "article",
        _stage(before, outputs[0][1] if outputs else None),
        element(
            "div",
            element(
                "div",
                element("h2", result["custom_id"]),
                element("span", result["status"], class_=f"badge {result['status']}"),
                class_="title",
            ),
            _prompt(result),
            _error(result),
            _pictures(result, before, outputs, folder, side),
            element("dl", *_facts(result), class_="facts"),
            class_="side",
        ),
        class_="result",
        data_id=result["custom_id"],
        data_status=result["status"],
        data_loras=loras,
    )


def _stage(before: Thumbnail | None, after: Thumbnail | None) -> Markup:
    """The place where the script puts the slider."""
    if before is None or after is None:
        return element("div", element("p", "Nothing to compare", class_="nothing"), class_="stage")
    words = (element("span", "Before", class_="word left"), element("span", "After", class_="word right"))
    ratio = f"--ratio: {before.width / before.height:.4f}"
    return element("div", element("div", *words, class_="compare", style=ratio), class_="stage")


def _prompt(result: Result) -> Markup:
    prompt = result.get("prompt")
    return element("p", prompt, class_="prompt") if prompt else element("p", "no prompt", class_="prompt empty")


def _error(result: Result) -> Markup | None:
    error = result.get("error")
    return error and element("p", element("code", error["code"]), " ", error["message"], class_="error")


def _pictures(
    result: Result, before: Thumbnail | None, outputs: list[tuple[str, Thumbnail | None]], folder: Path, side: int
) -> Markup:
    name, mask = result["custom_id"], result.get("mask")
    many = len(outputs) > 1
    figures = [
        _figure("Before", f"{name} before", "before", result["image"], before, folder),
        _figure("Mask", f"{name} mask: white is edited", "mask", mask, mask_thumbnail(mask, side), folder)
        if mask
        else _gap("Mask", "none given"),
        *(
            _figure(f"After {number}" if many else "After", f"{name} after", "after", uri, picture, folder)
            for number, (uri, picture) in enumerate(outputs, 1)
        ),
    ]
    if not outputs:
        figures.append(_gap("After", "no picture"))
    return element("div", *figures, class_="pictures")


def _figure(caption: str, alt: str, role: str, uri: str, picture: Thumbnail | None, folder: Path) -> Markup:
    if picture is None:
        return _gap(caption, "not readable here", uri)
    image = element("img", class_=role, alt=alt, src=picture.data, decoding="async")
    title = f"{picture.width} × {picture.height}, {uri.rpartition('/')[2]}"
    target = link(uri, folder)
    frame = element("a", image, class_="frame", href=target, title=title, target="_blank", rel="noopener")
    return element("figure", frame, element("figcaption", caption))


def _gap(caption: str, why: str, uri: str | None = None) -> Markup:
    return element("figure", element("span", why, class_="frame missing", title=uri), element("figcaption", caption))


def _facts(result: Result) -> Iterator[Markup]:
    if receipt := result.get("receipt"):
        worst, compared = receipt["max_abs_diff_outside"], receipt.get("pixels_outside")
        words = "0 changed" if worst == 0 else f"differs by up to {worst} of 255"
        yield element("dt", "Outside the mask")
        yield element(
            "dd",
            element("span", words, class_=f"receipt {'kept' if worst == 0 else 'broken'}"),
            f" of {compared:,} pixels" if compared and worst == 0 else None,
        )
    yield element("dt", "LoRA")
    yield element("dd", ", ".join(n if s == 1 else f"{n} × {s:g}" for n, s in _loras(result)) or "none")
    if result.get("seed") is not None:
        yield element("dt", "Seed")
        yield element("dd", str(result["seed"]))
    if timings := result.get("timings"):
        yield element("dt", "Time")
        yield element("dd", _time(timings))


def _time(timings: Mapping[str, float]) -> Markup:
    """The whole, and behind it every stage: in words and as a bar."""
    stages = {stage: seconds for stage, seconds in timings.items() if stage != "total"}
    whole = timings.get("total", sum(stages.values()))
    if not stages:
        return fragment(_seconds(whole))
    colours = {stage: f"c{1 + place % _COLOURS}" for place, stage in enumerate(stages)}
    share = 100 / (sum(stages.values()) or 1)
    bar = (
        element("span", class_=colours[stage], style=f"width: {seconds * share:.2f}%")
        for stage, seconds in stages.items()
    )
    rows = (
        element(
            "tr",
            element("th", element("span", class_=f"dot {colours[stage]}"), stage.replace("_", " "), scope="row"),
            element("td", _seconds(seconds)),
        )
        for stage, seconds in stages.items()
    )
    return fragment(
        element("details", element("summary", _seconds(whole)), element("table", *rows)),
        element("div", *bar, class_="bar", aria_hidden="true"),
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def _loras(result: Result) -> list[tuple[str, float]]:
    """(file name without its ending, scale) of each."""
    refs = result.get("loras") or ()
    return [(ref["path"].rpartition("/")[2].removesuffix(".safetensors"), ref.get("scale", 1.0)) for ref in refs]
