"""`farm completion`"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from farm.errors import InvalidParameter
from producer.commands.common import json_errors_option

_HOW = {
    "bash": 'add to ~/.bashrc:  eval "$(farm completion bash)"',
    "zsh": 'add to ~/.zshrc:  eval "$(farm completion zsh)"',
    "fish": "run once:  farm completion fish > ~/.config/fish/completions/farm.fish",
}


@click.command(epilog="; ".join(_HOW.values()))
@click.argument("shell", type=click.Choice(sorted(_HOW)))
@json_errors_option
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete all this."""
    cls = get_completion_class(shell)
    if cls is None:
        raise InvalidParameter("SHELL", f"{shell} is not known to this version of click")
    root = ctx.find_root()
    click.echo(cls(root.command, {}, "farm", "_FARM_COMPLETE").source())


COMMAND = completion
