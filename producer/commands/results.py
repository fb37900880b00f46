"""`farm results`"""

from __future__ import annotations

from typing import BinaryIO

import click

from producer.commands.common import connected, json_errors_option, tenant_option
from producer.results import FORMATS, write_results


@click.command()
@click.argument("batch")
@click.option("--format", "form", type=click.Choice(sorted(FORMATS)), default="farm", show_default=True)
@click.option("--out", type=click.File("wb"), default="-", help="A file; else standard output.")
@tenant_option
@json_errors_option
def results(batch: str, form: str, out: BinaryIO, tenant: str) -> None:
    """Write the results that there are now of BATCH. One JSON object a line, in the order of its jobs."""
    write_results(out, connected().batch(batch, tenant=tenant).results(), form)


COMMAND = results
