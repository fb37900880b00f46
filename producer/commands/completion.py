"""`farm completion`"""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from farm.errors import InvalidParameter

_HOW = {
    "bash": 'add to ~/.bashrc:  eval "$(farm completion bash)"',
    "zsh": 'add to ~/.zshrc:  eval "$(farm completion zsh)"',
    "fish": "run once:  farm completion fish > ~/.config/fish/completions/farm.fish",
}


@click.command(epilog="; ".join(_HOW.values()))
@click.argument("shell", type=click.Choice(sorted(_HOW)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that lets SHELL complete this command's words."""
    cls = get_completion_class(shell)
    if cls is None:
        raise InvalidParameter("SHELL", f"{shell} is not known to this version of click")
    root = ctx.find_root()
    click.echo(cls(root.command, {}, "farm", "_FARM_COMPLETE").source())


COMMAND = completion
