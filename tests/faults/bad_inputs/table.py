"""The rows as Markdown, between two marks of the folder's README."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tests.faults.bad_inputs import ACTS, MESSAGES, ROWS, Row

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- bad inputs -->", "<!-- end of bad inputs -->"


def rendered(text: str) -> str:
    """`text` with the part between the marks made anew. Raises ValueError where a mark is missing."""
    before, after = text.index(BEGIN) + len(BEGIN), text.index(END)
    return text[:before] + "\n" + "\n".join(_lines()) + "\n" + text[after:]


def _lines() -> Iterator[str]:
    for title, rows in ROWS.items():
        yield from ("", f"### {title}", "", "| Input | Error code | Refused by |", "| --- | --- | --- |")
        yield from (f"| {_cell(row.what)} | {_answer(row)} | {_place(row)} |" for row in rows)
    yield from ("", "### Only the client can know", "", "| Input | Error code |", "| --- | --- |")
    yield from (f"| {_cell(act.what)} | `{act.code}` |" for act in ACTS)
    yield from ("", "### Messages in the Celery queue: dropped, and the next job runs", "")
    yield ", ".join(_cell(message.what) for message in MESSAGES) + "."
    yield ""


def _answer(row: Row) -> str:
    if row.code:
        return f"`{row.code}`"
    return "accepted" + (", with a warning" if row.warning else "") + (", logged" if row.logged else "")


def _place(row: Row) -> str:
    if not row.code:
        return ""
    return "client, and worker" if row.early else "worker"


def _cell(text: str) -> str:
    """Control characters and Markdown's own as what they are."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return shown.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
