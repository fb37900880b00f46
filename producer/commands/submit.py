"""`farm submit`"""

from __future__ import annotations

from typing import BinaryIO

import click

from farm.errors import JobFailed
from farm.schemas import InpaintJob
from producer.commands.common import connected, json_option, tell


@click.command()
@click.argument("job", type=click.File("rb"))
@click.option("--idempotency-key", help="Submitting the same job again under the same key renders it once.")
@click.option("--wait", type=float, metavar="SECONDS", help="Wait for the result and print it instead of the address.")
@json_option
def submit(job: BinaryIO, idempotency_key: str | None, wait: float | None, as_json: bool) -> None:
    """Submit one job and print its address. JOB is a JSON file ("-": standard input).

    The address is what `farm status`, `farm watch` and `farm cancel` take. Many jobs: `farm run`.
    """
    parsed = InpaintJob.from_json(job.read())
    handle = connected().submit(parsed, idempotency_key=idempotency_key)
    if wait is None:
        told = {"address": handle.address, "job_id": handle.id, "batch_id": handle.batch_id}
        tell({**told, "custom_id": handle.job.custom_id}, handle.address, as_json=as_json)
        return
    result = handle.result(timeout=wait, check=False)
    click.echo(result.to_json())
    if result.error:
        raise JobFailed(f"{result.error.code}: {result.error.message}", result)


COMMAND = submit
