"""The `farm-worker` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import farm
from farm.config import load_settings
from farm.errors import FarmError, from_foreign
from farm.ledger import Ledger, connect
from farm.logs import set_up


class _Commands(click.Group):
    """Errors are one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (FarmError, ValueError) as error:
            known = from_foreign(error)  # the engine's errors are ValueErrors with a code
            if known is None:
                raise
            click.echo(f"farm-worker: {known.code}: {known}", err=True)
        ctx.exit(2)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(farm.__version__)
def main() -> None:
    """Render inpaint jobs. Settings come from FARM_* environment variables."""


@main.command()
def run() -> None:
    """Serve jobs until told to end (SIGTERM drains)."""
    settings = load_settings()
    set_up(settings.log_level)
    Ledger(connect(settings.redis_url)).ping()  # said at once, not after torch and transformers were imported
    from worker.lifecycle import serve

    sys.exit(serve(settings))


@main.command("demo-model")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", default=0, show_default=True, help="Seed of the random weights.")
def demo_model(folder: Path, seed: int) -> None:
    """Write a small checkpoint with random weights, and some LoRAs for it, into FOLDER."""
    from worker.demo.checkpoint import make_checkpoint, make_loras

    make_checkpoint(folder / "checkpoint", seed=seed)
    make_loras(folder / "loras", folder / "checkpoint", seed=seed)
    click.echo(folder)


@main.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> None:
    """Turn a pickled checkpoint, LoRA or embedding (.ckpt, .bin, .pt, or a folder of them) into safetensors.

    The pickle is opened in a process of its own that runs none of its code.
    """
    from worker.engine.convert import convert as convert_file

    done = convert_file(source, target)
    click.echo(f"{target}: {done.tensors} tensors in {done.files} files")
