"""The `farm` command, for users and operators. Errors are one line and exit code 2; a failed run is exit code 1."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import BinaryIO

import click

import farm
from farm.config import load_settings
from farm.errors import FarmError, JobFailed
from farm.logs import set_up
from farm.schemas import InpaintJob
from producer import operations
from producer.client import Client


class _Commands(click.Group):
    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except JobFailed as error:
            click.echo(f"farm: {error}", err=True)
            ctx.exit(1)
        except FarmError as error:
            click.echo(f"farm: {error.code}: {error}", err=True)
            ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(farm.__version__)
def main() -> None:
    """Bulk image editing on a farm of GPU workers. Settings come from FARM_* environment variables."""


@main.command()
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


@main.command()
def dispatcher() -> None:
    """Run the control plane: index what was accepted, hint the workers, look after what falls silent."""
    from farm.dispatcher.process import serve

    settings = load_settings()
    set_up(settings.log_level)
    sys.exit(serve(settings))


@main.command()
@click.argument("job", type=click.File("rb"))
@click.option("--idempotency-key", help="Submitting the same job again under the same key renders it once.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait for the result and print it instead of the id.")
def submit(job: BinaryIO, idempotency_key: str | None, wait: float | None) -> None:
    """Submit the job in the JSON file JOB ("-": standard input) and print its id."""
    parsed = InpaintJob.from_json(job.read())
    handle = Client(load_settings()).submit(parsed, idempotency_key=idempotency_key)
    if wait is None:
        click.echo(handle.id)
        return
    result = handle.result(timeout=wait, check=False)
    click.echo(result.to_json())
    if result.error:
        raise JobFailed(f"{result.error.code}: {result.error.message}", result)


for command in operations.COMMANDS:
    main.add_command(command)
