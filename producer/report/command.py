"""`farm report`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from farm.config import load_settings
from farm.errors import InvalidParameter
from farm.schemas import JobResult
from farm.storage import ObjectStore
from producer.report.pages import PAGE, write_report
from producer.report.source import Pictures, read_results, sampled
from producer.run import RESULTS


@click.command("report")
@click.argument("results")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("report.html"), show_default=True,
    help="A file ….html, or a folder, whose index.html it becomes.",
)  # fmt: skip
@click.option("--title", help="The page's title; without it what RESULTS is called.")
@click.option("--sample", type=click.IntRange(min=1), metavar="N", help="Only N results, each equally likely.")
@click.option("--sample-seed", type=int, default=0, show_default=True, help="Another seed, another sample.")
@click.option("--page-size", type=click.IntRange(1, PAGE), default=PAGE, show_default=True, help="Results on a page.")
@click.option("--tenant", default="default", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
def COMMAND(
    results: str, out: Path, title: str | None, sample: int | None, sample_seed: int, page_size: int, tenant: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a page to review a run with.

    RESULTS is a run's folder, a results.ndjson ("-": standard input) or a batch's id. The page needs nothing but a
    browser. Accept and reject with the keyboard; it exports review.ndjson.
    """
    with _results(results, tenant) as found:
        chosen = found if sample is None else sampled(found, sample, seed=sample_seed)
        name = title or (f"Results of {Path(results).name}" if results != "-" else "Results")
        written = write_report(out, chosen, title=name, pictures=Pictures(_store), page_size=page_size)
    if as_json:
        facts = {"path": str(written.path), "pages": written.pages, "results": written.results}
        click.echo(json.dumps({**facts, "bytes": written.bytes, "missing_pictures": written.missing}))
        return
    pages = "1 page" if written.pages == 1 else f"{written.pages:,} pages and their index"
    click.echo(f"{written.path}: {written.results:,} results, {pages}, {written.bytes / 1e6:.1f} MB")
    if written.missing:
        click.echo(f"{written.missing:,} pictures could not be read here; set FARM_STORE to read them from the store.")


@contextmanager
def _results(source: str, tenant: str) -> Iterator[Iterator[JobResult]]:
    """A file that is there is a file, and so is what is named like one; anything else is a batch's id."""
    if Path(source).is_dir():
        source = str(Path(source, RESULTS))
    if source == "-":
        yield read_results(sys.stdin.buffer, "standard input")
    elif Path(source).is_file():
        with Path(source).open("rb") as file:
            yield read_results(file, source)
    elif "/" in source or "." in source:
        raise InvalidParameter("RESULTS", f"there is no file {source}")
    else:
        from producer.client import Client  # what reads a file needs no farm

        yield Client(load_settings()).batch(source, tenant=tenant).results()


def _store() -> ObjectStore | None:
    settings = load_settings()
    return settings.open_store() if settings.store else None
