"""`farm dispatcher`"""

from __future__ import annotations

import sys

import click

from farm.config import load_settings
from farm.logs import set_up


@click.command()
def dispatcher() -> None:
    """Run the control plane: index what was accepted, hint the workers, look after what falls silent."""
    from farm.dispatcher.process import serve

    settings = load_settings()
    set_up(settings.log_level)
    sys.exit(serve(settings))


COMMAND = dispatcher
