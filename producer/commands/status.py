"""`farm status`"""

from __future__ import annotations

import json

import click

from farm.schemas import BatchSummary
from producer.commands.common import connected, json_option, price_of, price_option, target_of, tell, tenant_option
from producer.cost import Costs
from producer.handle import JobHandle
from producer.tables import cost_table, printed


@click.command()
@click.argument("target")
@click.option("--cost", is_flag=True, help="GPU-seconds by image, tenant and LoRA, and failures by code.")
@price_option
@tenant_option
@json_option
def status(target: str, cost: bool, price: float | None, tenant: str, as_json: bool) -> None:
    """Show how far a batch or a job is. TARGET is a batch's id, or a job's address."""
    client = connected()
    handle = target_of(client, target, tenant)
    if isinstance(handle, JobHandle):
        _show_job(handle, as_json=as_json)
        return
    summary = handle.status()
    told = json.loads(summary.to_json())
    if not cost:
        tell(told, sentence(summary), as_json=as_json)
        return
    costs, hour = Costs.of(handle.results()), price_of(client, price)
    tell({**told, "costs": costs.to_dict(hour)}, sentence(summary), as_json=as_json)
    if not as_json:
        printed(cost_table(costs, hour))


def _show_job(handle: JobHandle, *, as_json: bool) -> None:
    result = handle.peek()
    if result is not None:
        words = f"{handle.address}: {result.status.value}"
        words += f": {result.error.code}: {result.error.message}" if result.error else ""
        words += "".join(f"\n  {output.uri}" for output in result.outputs)
        tell(json.loads(result.to_json()), words, as_json=as_json)
        return
    state = handle.status().value
    tell({"address": handle.address, "status": state}, f"{handle.address}: {state}", as_json=as_json)


def sentence(summary: BatchSummary) -> str:
    counts = ", ".join(f"{count:,} {state.value}" for state, count in summary.counts.items() if count)
    how = " (canceled)" if summary.canceled else " (paused)" if summary.paused else ""
    return f"{summary.batch_id}{how}: {summary.ended:,} of {summary.jobs:,} ended: {counts or 'nothing yet'}"


COMMAND = status
