"""The `farm` commands that watch and steer what was submitted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from farm import keys
from farm.config import load_settings
from farm.errors import InvalidParameter
from farm.ledger import JobRef
from farm.schemas import BatchSummary
from producer.client import Client

tenant_option = click.option("--tenant", default="default", show_default=True)
json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")


@click.command()
@click.argument("batch")
@tenant_option
@json_option
def status(batch: str, tenant: str, as_json: bool) -> None:
    """Show how far BATCH is."""
    summary = Client(load_settings()).batch(batch, tenant=tenant).status()
    click.echo(summary.to_json() if as_json else _sentence(summary))


@click.command()
@click.argument("batch")
@tenant_option
def pause(batch: str, tenant: str) -> None:
    """Begin no more jobs of BATCH; those that run go on."""
    Client(load_settings()).batch(batch, tenant=tenant).pause()
    click.echo(f"{batch}: paused; go on with `farm resume {batch}`")


@click.command()
@click.argument("batch")
@tenant_option
def resume(batch: str, tenant: str) -> None:
    """Go on with a paused BATCH."""
    Client(load_settings()).batch(batch, tenant=tenant).resume()
    click.echo(f"{batch}: goes on")


@click.command()
@click.argument("batch")
@tenant_option
def cancel(batch: str, tenant: str) -> None:
    """Render nothing more of BATCH; what has ended stays."""
    Client(load_settings()).batch(batch, tenant=tenant).cancel()
    click.echo(f"{batch}: canceled; jobs that have not ended end so as workers come to them")


@click.command("retry-failed")
@click.argument("batch")
@click.option("--code", "codes", multiple=True, help="Only jobs that failed with this error code; may be repeated.")
@tenant_option
def retry_failed(batch: str, tenant: str, codes: tuple[str, ...]) -> None:
    """Try the failed jobs of BATCH again; their old results stay beside the new ones."""
    handle = Client(load_settings()).batch(batch, tenant=tenant)
    click.echo(f"{batch}: {handle.retry_failed(codes=frozenset(codes) or None)} jobs are tried again")


@click.group()
def dead() -> None:
    """Jobs that were given up although nothing is known to be wrong with them."""


@dead.command("list")
@json_option
def list_dead(as_json: bool) -> None:
    """List them, with the reason of each."""
    found = 0
    for _, entry in _buried(Client(load_settings())):
        found += 1
        ref, error = entry["ref"], entry["error"]
        line = f"{ref['job_id']}  {ref['tenant']}/{ref['batch_id']}  {error['code']}: {error['message']}"
        click.echo(json.dumps({**ref, **error}) if as_json else line)
    if not as_json:
        click.echo(f"{found} dead jobs" + ("; try them again with `farm dead requeue --all`" if found else ""))


@dead.command()
@click.argument("job_ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead jobs.")
def requeue(job_ids: tuple[str, ...], everything: bool) -> None:
    """Try the jobs JOB_IDS again, as another generation."""
    if not job_ids and not everything:
        raise InvalidParameter("JOB_IDS", "name jobs of `farm dead list`, or say --all")
    client = Client(load_settings())
    wanted, found = set(job_ids), 0
    for uri, entry in list(_buried(client)):
        ref = JobRef(**entry["ref"])
        if everything or ref.job_id in wanted:
            found += client.retry(ref)
            client.store.delete(uri)
            wanted.discard(ref.job_id)
    if wanted:
        raise InvalidParameter("JOB_IDS", f"{', '.join(sorted(wanted))}: not among the dead; see `farm dead list`")
    click.echo(f"{found} jobs are tried again")


def _buried(client: Client) -> Iterator[tuple[str, dict[str, Any]]]:
    for info in client.store.list(keys.graveyard(client.settings.store)):
        yield info.uri, json.loads(client.store.get(info.uri, max_bytes=2**20).data)


def _sentence(summary: BatchSummary) -> str:
    counts = ", ".join(f"{count:,} {state.value}" for state, count in summary.counts.items() if count)
    how = " (canceled)" if summary.canceled else " (paused)" if summary.paused else ""
    return f"{summary.batch_id}{how}: {summary.ended:,} of {summary.jobs:,} ended: {counts or 'nothing yet'}"


COMMANDS = (status, pause, resume, cancel, retry_failed, dead)
