"""`farm watch`"""

from __future__ import annotations

import json

import click

from farm.errors import JobFailed
from farm.states import JobState
from producer.commands.common import connected, json_option, price_of, price_option, target_of, tell, tenant_option
from producer.cost import Costs
from producer.handle import JobHandle
from producer.progress import JobProgress
from producer.tables import cost_table, printed


@click.command()
@click.argument("target")
@click.option("--timeout", type=float, metavar="SECONDS", help="Give up when nothing has ended for so long.")
@price_option
@tenant_option
@json_option
def watch(target: str, timeout: float | None, price: float | None, tenant: str, as_json: bool) -> None:
    """Follow a batch or a job to its end. TARGET is a batch's id, or a job's address.

    A batch is shown by how far it is, a job by each state that it comes into. Exit code 1 if any did not succeed.
    """
    client = connected()
    handle = target_of(client, target, tenant)
    if isinstance(handle, JobHandle):
        _watch_job(handle, timeout, as_json=as_json)
        return
    costs = Costs()
    with JobProgress(handle.jobs, as_json=as_json) as progress:
        for result in handle.follow(ordered=False, timeout=timeout, on_wait=progress.show):
            costs.add(result)
            progress.add(result)
    hour, bad = price_of(client, price), handle.jobs - costs.states[JobState.SUCCEEDED.value]
    words = f"{handle.id}: {handle.jobs - bad:,} of {handle.jobs:,} succeeded"
    tell({"batch_id": handle.id, "jobs": handle.jobs, **costs.to_dict(hour)}, words, as_json=as_json)
    if not as_json:
        printed(cost_table(costs, hour))
    if bad:
        raise JobFailed(f"{bad:,} of {handle.jobs:,} did not succeed; try again with `farm retry-failed {handle.id}`.")


def _watch_job(handle: JobHandle, timeout: float | None, *, as_json: bool) -> None:
    for event in handle.events(timeout=timeout):
        told = {"address": handle.address, "status": event.state.value, "at": event.at.isoformat()}
        if event.result is not None:
            told["result"] = json.loads(event.result.to_json())
        tell(told, f"{event.at:%H:%M:%S} {event.state.value}", as_json=as_json)
        if event.result is not None and event.result.error is not None:
            raise JobFailed(f"{event.result.error.code}: {event.result.error.message}", event.result)


COMMAND = watch
