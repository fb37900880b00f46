"""`farm dispatcher`"""

from __future__ import annotations

import sys

import click

from farm.config import load_settings
from farm.logs import set_up
from producer.commands.common import json_errors_option


@click.command()
@json_errors_option
def dispatcher() -> None:
    """Run the control plane. It indexes what was accepted, hints the workers, looks after what falls silent."""
    from farm.dispatcher.process import serve

    settings = load_settings()
    set_up(settings.log_level)
    sys.exit(serve(settings))


COMMAND = dispatcher
