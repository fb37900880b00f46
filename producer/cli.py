"""The `farm` command, for users and operators. Errors are one line and exit code 2; a failed run is exit code 1."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import click

import farm
from farm.errors import FarmError, JobFailed, OverBudget

# Each is imported when it is called, or listed by --help: a status must not wait for what the demo draws with.
COMMANDS = {
    "demo": "producer.commands.demo",
    "submit": "producer.commands.submit",
    "run": "producer.commands.run",
    "status": "producer.commands.status",
    "watch": "producer.commands.watch",
    "results": "producer.commands.results",
    "report": "producer.report.command",
    "cancel": "producer.commands.cancel",
    "pause": "producer.commands.pause",
    "resume": "producer.commands.resume",
    "retry-failed": "producer.commands.retry_failed",
    "check": "producer.commands.check",
    "lora": "producer.commands.lora",
    "top": "producer.commands.top",
    "doctor": "producer.commands.doctor",
    "dispatcher": "producer.commands.dispatcher",
    "dead": "producer.commands.dead",
    "completion": "producer.commands.completion",
}


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None:
            return None
        command: click.Command = import_module(module).COMMAND
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (near := get_close_matches(args[0], COMMANDS, n=1)):
            raise click.UsageError(f"No such command {args[0]!r}; did you mean {near[0]!r}?", ctx)
        return super().resolve_command(ctx, args)

    def main(self, args: Sequence[str] | None = None, *more: Any, **extra: Any) -> Any:
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(given, *more, **{**extra, "standalone_mode": False})
        except click.Abort:
            code = 130
            _complain("Interrupted", "stopped here; what was submitted goes on.", given)
        except click.exceptions.NoArgsIsHelpError as error:
            code = 2
            error.show()
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "farm"
            _complain("Usage", f"{error.format_message().rstrip('.')} (see `{path} --help`)", given)
            code = error.exit_code
        except click.ClickException as error:
            _complain(type(error).__name__, error.format_message(), given)
            code = error.exit_code
        except (JobFailed, OverBudget) as error:
            _complain(error.code, str(error), given, coded=False)
            code = 1
        except FarmError as error:
            _complain(error.code, str(error), given)
            code = 2
        except BrokenPipeError:  # `farm results … | head`
            code = 1
            sys.stderr.close()
        sys.exit(code if isinstance(code, int) else 0)


def _complain(code: str, message: str, arguments: list[str], *, coded: bool = True) -> None:
    line = " ".join(message.split())
    if "--json" in arguments:
        click.echo(json.dumps({"error": {"code": code, "message": line}}), err=True)
    else:
        click.echo(f"farm: {code}: {line}" if coded else f"farm: {line}", err=True)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(farm.__version__)
def main() -> None:
    """Bulk image editing on a farm of GPU workers. Settings come from FARM_* environment variables."""
