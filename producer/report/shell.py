"""The HTML around a page's data: its policy, its style, its script. What comes from a run is escaped or is JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import Any, Final

from producer.markup import Markup, element, fragment

GENERATOR: Final = "inpaint-farm report"
_PLACE: Final = "§data"  # where the data goes, between the two halves of a page


class _Page(Template):
    delimiter = "§"  # `$` and `%` are CSS's and JavaScript's


def halves(kind: str, scripts: Sequence[str], **words: Markup | str) -> tuple[str, str]:
    """A page before its data and after it: `head.html` and `<kind>.html`, files beside this one.

    `scripts` are joined into the one script that may run: the content security policy names its hash and the style's,
    and lets nothing be fetched from anywhere.
    """
    script, style = "\n".join(asset(name) for name in scripts), asset("report.css")
    page = _Page(asset("head.html") + asset(f"{kind}.html")).substitute(
        kind=kind,
        generator=GENERATOR,
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
            "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
        ),
        style=style,
        script=script,
        data=_PLACE,
        **{name: fragment(word) for name, word in words.items()},
    )
    before, _, after = page.rpartition(_PLACE)
    return before, after


def data_block(content: Any, *, id: str | None = None, class_: str | None = None) -> Markup:
    """JSON that the script reads. No byte of it can end the element: `<` is written as an escape."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", id=id, class_=class_)


@cache
def asset(name: str) -> str:
    return (files("producer.report") / name).read_text("utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(sha256(text.encode()).digest()).decode()
