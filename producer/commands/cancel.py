"""`farm cancel`"""

from __future__ import annotations

import click

from producer.commands.common import connected, json_option, target_of, tell, tenant_option
from producer.handle import JobHandle


@click.command()
@click.argument("target")
@tenant_option
@json_option
def cancel(target: str, tenant: str, as_json: bool) -> None:
    """Render nothing more of a batch or a job. TARGET is a batch's id, or a job's address; what has ended stays."""
    handle = target_of(connected(), target, tenant)
    if isinstance(handle, JobHandle):
        state = handle.cancel().value
        tell({"address": handle.address, "status": state}, f"{handle.address}: {state}", as_json=as_json)
        return
    canceled = handle.cancel()
    words = "canceled; jobs that have not ended end so as workers come to them" if canceled else "over already"
    tell({"batch_id": handle.id, "canceled": canceled}, f"{handle.id}: {words}", as_json=as_json)


COMMAND = cancel
