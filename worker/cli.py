"""The `farm-worker` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click

import farm
from farm.config import load_settings
from farm.errors import FarmError, Misconfigured, from_foreign
from farm.ledger import Ledger, connect
from farm.logs import set_up


class _Commands(click.Group):
    """Errors are one line and exit code 2. `--backend` without a command is `run`'s."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, ["run", *args] if args and args[0].startswith("--backend") else args)

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
@click.option("--backend", type=click.Choice(["torch", "jax"]), help="What renders; default FARM_BACKEND, else torch.")
def run(backend: str | None) -> None:
    """Serve jobs until told to end (SIGTERM drains)."""
    settings = load_settings(**({} if backend is None else {"backend": backend}))
    set_up(settings.log_level)
    Ledger(connect(settings.redis_url)).ping()  # said at once, not after torch and transformers were imported
    from worker.lifecycle import serve

    sys.exit(serve(settings))


@main.command("demo-model")
@click.argument("folder", type=click.Path(path_type=Path))
def demo_model(folder: Path) -> None:
    """Write the small trained model that comes with the package, and its LoRAs, into FOLDER."""
    from worker.demo.shipped import copy_model

    try:
        copy_model(folder)
    except FileExistsError as error:
        raise Misconfigured(str(error)) from None
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
