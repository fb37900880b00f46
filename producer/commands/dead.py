"""`farm dead`"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import click

from farm import keys
from farm.errors import InvalidParameter
from farm.ledger import JobRef
from producer.client import Client
from producer.commands.common import connected, json_option, tell


@click.group()
def dead() -> None:
    """List jobs that were given up, and try them again. Nothing is known to be wrong with them."""


@dead.command("list")
@json_option
def list_dead(as_json: bool) -> None:
    """List them, with the reason of each."""
    found = 0
    for _, entry in _buried(connected()):
        found += 1
        ref, error = entry["ref"], entry["error"]
        line = f"{ref['job_id']}  {ref['tenant']}/{ref['batch_id']}  {error['code']}: {error['message']}"
        click.echo(json.dumps({**ref, **error}) if as_json else line)
    if not as_json:
        click.echo(f"dead jobs: {found:,}" + ("; try them again with `farm dead requeue --all`" if found else ""))


@dead.command()
@click.argument("job_ids", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="All dead jobs.")
@json_option
def requeue(job_ids: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Try the jobs JOB_IDS again, as another generation."""
    if not job_ids and not everything:
        raise InvalidParameter("JOB_IDS", "name jobs of `farm dead list`, or say --all")
    client = connected()
    wanted, found = set(job_ids), 0
    for uri, entry in list(_buried(client)):
        ref = JobRef(**entry["ref"])
        if everything or ref.job_id in wanted:
            found += client.retry(ref)
            client.store.delete(uri)
            wanted.discard(ref.job_id)
    if wanted:
        raise InvalidParameter("JOB_IDS", f"{', '.join(sorted(wanted))}: not among the dead; see `farm dead list`")
    tell({"retried": found}, f"dead jobs that are tried again: {found:,}", as_json=as_json)


def _buried(client: Client) -> Iterator[tuple[str, dict[str, Any]]]:
    for info in client.store.list(keys.graveyard(client.settings.store)):
        yield info.uri, json.loads(client.store.get(info.uri, max_bytes=2**20).data)


COMMAND = dead
