"""`farm demo`"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import click


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo-out"), show_default=True)
@click.option("--jobs", type=click.IntRange(1, 1000), default=24, show_default=True)
def demo(out: Path, jobs: int) -> None:
    """Start a whole farm on this machine, edit real photographs with it, and stop it again."""
    from rich.console import Console

    from producer.demo import run_demo

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # to be stopped in good order by either
    try:
        code = run_demo(out, jobs=jobs, console=Console())
    except KeyboardInterrupt:
        click.echo("farm: interrupted; everything that the demo started was stopped.", err=True)
        code = 130
    sys.exit(code)


COMMAND = demo
