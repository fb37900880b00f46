"""`farm retry-failed`"""

from __future__ import annotations

import click

from producer.commands.common import connected, json_option, tell, tenant_option


@click.command("retry-failed")
@click.argument("batch")
@click.option("--code", "codes", multiple=True, help="Only jobs that failed with this error code; may be repeated.")
@tenant_option
@json_option
def retry_failed(batch: str, tenant: str, codes: tuple[str, ...], as_json: bool) -> None:
    """Try the failed jobs of BATCH again. Their old results stay beside the new ones."""
    count = connected().batch(batch, tenant=tenant).retry_failed(codes=frozenset(codes) or None)
    tell(
        {"batch_id": batch, "retried": count}, f"{batch}: failed jobs that are tried again: {count:,}", as_json=as_json
    )


COMMAND = retry_failed
