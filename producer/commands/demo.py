"""`farm demo`"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click

from producer.commands.common import json_option


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True,
              help="A folder, empty or of an earlier demo.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(1, 1000), default=24, show_default=True, help="Photographs to edit.")
@json_option
def demo(out: Path, jobs: int, as_json: bool) -> None:
    """Edit real photographs with a farm on this machine. It is started, and stopped again."""
    from producer.demo import run_demo

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be stopped in good order by either
    try:
        code = run_demo(out, jobs=jobs, as_json=as_json)
    except KeyboardInterrupt:
        click.echo("farm: interrupted; everything that the demo started was stopped.", err=True)
        code = 130
    sys.exit(code)


COMMAND = demo
