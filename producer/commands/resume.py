"""`farm resume`"""

from __future__ import annotations

import click

from producer.commands.common import connected, json_option, tell, tenant_option


@click.command()
@click.argument("batch")
@tenant_option
@json_option
def resume(batch: str, tenant: str, as_json: bool) -> None:
    """Go on with a paused BATCH."""
    connected().batch(batch, tenant=tenant).resume()
    tell({"batch_id": batch, "paused": False}, f"{batch}: goes on", as_json=as_json)


COMMAND = resume
