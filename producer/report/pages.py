"""A run as pages of up to 1,000 results, each one file; several pages have an index that knows how far each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Final, NamedTuple
from urllib.parse import quote

from farm.errors import InvalidParameter
from farm.schemas import JobResult
from farm.states import JobState
from producer.markup import Markup, element, fragment
from producer.report.rows import row, run_name
from producer.report.shell import GENERATOR, data_block, halves
from producer.thumbnails import Thumbnail, link, picture_thumbnail

PAGE: Final = 1000  # results; a browser holds so many with ease, and a page stays near 25 MB

# Up to so many results on a page have pictures with a long side of so many pixels: 6, 13 and 22 MB a full page.
_SIDES: Final = ((100, 640), (300, 512), (PAGE, 320))
_QUALITY: Final = 70  # of WebP; a picture of 640, 512 and 320 px then takes some 21, 16 and 8.5 KB
_READERS: Final = 4  # pictures on their way at once

_PAGE_SCRIPTS: Final = ("dom.js", "decisions.js", "list.js", "detail.js", "review.js")
_INDEX_SCRIPTS: Final = ("dom.js", "decisions.js", "index.js")

Pictures = Callable[[str], str | bytes | None]


@dataclass(frozen=True)
class Written:
    """What came of it. `missing`: pictures that could not be read; their places say so."""

    path: Path  # to open first
    pages: int
    results: int
    bytes: int
    missing: int


class _Facts(NamedTuple):
    statuses: dict[str, int]
    review: int  # results that the gate wants looked at
    measured: int  # results whose receipt says what happened outside the mask …
    changed: int  # … and that something did


class _Page(NamedTuple):
    path: Path
    run: str
    results: int
    facts: _Facts
    missing: int


def write_report(
    out: Path, results: Iterable[JobResult], *, title: str, pictures: Pictures, page_size: int = PAGE
) -> Written:
    """Write `results` to `out`, a file `….html` or a folder (its `index.html`), replacing an earlier report there.

    `pictures` gives a picture's file or bytes for its address, None where there is none. More than `page_size` results
    go to pages `…-001.html` beside `out`, which then is their index. Raises InvalidParameter if `out` is something
    else than a report.
    """
    path = out if out.suffix.lower() in (".html", ".htm") else out / "index.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    groups = _groups(results, page_size)
    first, second = next(groups, []), next(groups, None)
    if second is None:
        only = _write_page(path, first, title=title, pictures=pictures, index=None)
        return Written(path, 1, only.results, path.stat().st_size, only.missing)
    pages = [
        _write_page(
            path.with_name(f"{path.stem}-{number:03d}.html"), group, title=f"{title}, page {number}",
            pictures=pictures, index=path,
        )
        for number, group in enumerate(chain((first, second), groups), 1)
    ]  # fmt: skip
    _write_index(path, pages, title)
    size = sum(page.path.stat().st_size for page in pages) + path.stat().st_size
    return Written(path, len(pages), sum(p.results for p in pages), size, sum(p.missing for p in pages))


def _groups(results: Iterable[JobResult], size: int) -> Iterator[list[JobResult]]:
    left = iter(results)
    while group := list(islice(left, size)):
        yield group


# One page


def _write_page(
    path: Path, results: Sequence[JobResult], *, title: str, pictures: Pictures, index: Path | None
) -> _Page:
    folder, facts, run, missing = path.parent.absolute(), _facts(results), run_name(results), 0
    side = next((side for most, side in _SIDES if len(results) <= most), _SIDES[-1][1])
    before, after = halves(
        "review", _PAGE_SCRIPTS, title=title, about=_about(facts),
        back=element("a", "All pages", href=_beside(index), class_="back") if index else "",
    )  # fmt: skip
    rows = [row(result, partial(link, folder=folder)) for result in results]
    with _replacing(path) as file, ThreadPoolExecutor(_READERS) as pool:
        file.write(before + data_block({"run": run, "rows": rows}, id="data"))
        for small in pool.map(partial(_thumbnails, pictures=pictures, side=side), results):
            missing += small.count(None)
            file.write("\n" + data_block([one and [one.data, one.width, one.height] for one in small], class_="p"))
        file.write(_without_script(results) + after)
    return _Page(path, run, len(results), facts, missing)


def _thumbnails(result: JobResult, *, pictures: Pictures, side: int) -> list[Thumbnail | None]:
    """Before, and after of every output."""
    found = []
    for uri in (result.image, *(output.uri for output in result.outputs)):
        source = pictures(uri) if uri else None
        found.append(None if source is None else picture_thumbnail(source, side, quality=_QUALITY))
    return found


def _facts(results: Iterable[JobResult]) -> _Facts:
    results = list(results)
    outside = [result.receipt.max_abs_diff_outside for result in results if result.receipt]
    statuses = Counter(result.status.value for result in results)
    review = sum(result.needs_review for result in results)
    return _Facts(dict(statuses), review, len(outside), sum(worst > 0 for worst in outside))


def _about(facts: _Facts) -> Markup:
    """The run in one line."""
    counts = ", ".join(f"{count:,} {status}" for status, count in sorted(facts.statuses.items(), key=_by_state))
    parts = [fragment(counts or "no results")]
    if facts.review:
        parts.append(element("span", f"{facts.review:,} need review", class_="warn"))
    if facts.measured:
        some = "" if facts.measured >= facts.statuses.get("succeeded", 0) else f" ({facts.measured:,} measured)"
        what = f"{facts.changed:,} changed pixels" if facts.changed else "nothing changed"
        words = f"{what} outside the mask{some}"
        parts.append(element("span", words, class_="bad" if facts.changed else "good"))
    return Markup(" · ".join(parts))


def _by_state(pair: tuple[str, int]) -> int:
    return list(JobState).index(JobState(pair[0]))


def _without_script(results: Iterable[JobResult]) -> Markup:
    """Where no script runs, a table says in words what there is."""
    names = ("custom_id", "status", "gate score", "error")
    lines = (
        element(
            "tr",
            element("th", result.custom_id, scope="row"),
            element("td", result.status.value + (", needs review" if result.needs_review else "")),
            element("td", max((f"{o.scores.worst:.0%}" for o in result.outputs if o.scores), default="")),
            element("td", f"{result.error.code}: {result.error.message}" if result.error else ""),
        )
        for result in results
    )
    head = element("tr", *(element("th", name, scope="col") for name in names))
    why = element("p", "Pictures and review need this page's script.")
    return element("noscript", why, element("table", head, *lines))


# The index


def _write_index(path: Path, pages: Sequence[_Page], title: str) -> None:
    total = Counter[str]()
    for page in pages:
        total.update(page.facts.statuses)
    review = sum(page.facts.review for page in pages)
    measured, changed = sum(page.facts.measured for page in pages), sum(page.facts.changed for page in pages)
    about = _about(_Facts(dict(total), review, measured, changed))
    before, after = halves("index", _INDEX_SCRIPTS, title=title, about=about)
    items = (
        element(
            "li",
            element("a", f"Page {number}", href=_beside(page.path)),
            element("span", f"{page.results:,} results: ", _about(page.facts), class_="facts"),
            element("span", class_="far"),
            data_run=page.run,
            data_results=str(page.results),
        )
        for number, page in enumerate(pages, 1)
    )
    with _replacing(path) as file:
        file.write(before + element("ol", *items, class_="pages") + after)


def _beside(path: Path) -> str:
    return "./" + quote(path.name)


@contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A new file that takes the place of `path` when it is whole; only a report may be replaced."""
    if path.exists():
        with path.open("rb") as there:
            if f'content="{GENERATOR}"'.encode() not in there.read(2048):
                raise InvalidParameter("--out", f"{path} is there and is no report; choose another name")
    half = path.with_name(f".{path.name}.half")
    try:
        with half.open("w", encoding="utf-8") as file:
            yield file
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
