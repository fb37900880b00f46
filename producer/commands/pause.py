"""`farm pause`"""

from __future__ import annotations

import click

from producer.commands.common import connected, json_option, tell, tenant_option


@click.command()
@click.argument("batch")
@tenant_option
@json_option
def pause(batch: str, tenant: str, as_json: bool) -> None:
    """Begin no more jobs of BATCH; those that run go on."""
    connected().batch(batch, tenant=tenant).pause()
    words = f"{batch}: paused; go on with `farm resume {batch}`"
    tell({"batch_id": batch, "paused": True}, words, as_json=as_json)


COMMAND = pause
