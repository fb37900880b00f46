"""What the commands share: options, how a target is named, how an answer is told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from farm.config import load_settings
from farm.errors import InvalidParameter
from producer.batch import BatchHandle
from producer.client import Client
from producer.handle import JobHandle

tenant_option = click.option("--tenant", default="default", show_default=True, help="Whose jobs they are.")
json_option = click.option("--json", "as_json", is_flag=True, help="JSON for programs, one object a line.")
# Of commands whose output is JSON, or no words, in any case; `producer.cli` tells their errors by it.
json_errors_option = click.option("--json", is_flag=True, expose_value=False, help="Errors as JSON, too.")
price_option = click.option(
    "--price", type=click.FloatRange(min=0), help="Of one GPU for an hour; else FARM_GPU_HOUR_PRICE."
)


def connected() -> Client:
    return Client(load_settings())


def price_of(client: Client, price: float | None) -> float:
    return client.settings.gpu_hour_price if price is None else price


def target_of(client: Client, name: str, tenant: str) -> BatchHandle | JobHandle:
    """A batch by its id, a job by its address (`<batch>/<custom_id>`), or one that was submitted alone by its id.

    Raises InvalidParameter when it is none of these.
    """
    if "/" in name:
        return client.job(name, tenant=tenant)
    try:
        return client.batch(name, tenant=tenant)
    except InvalidParameter:
        try:
            return client.job(name, tenant=tenant)
        except InvalidParameter:
            raise InvalidParameter(
                "TARGET", f"{name!r} is no batch or job of tenant {tenant!r} in this farm; see --tenant and FARM_STORE"
            ) from None


def tell(data: Mapping[str, Any], sentence: str, *, as_json: bool) -> None:
    click.echo(json.dumps(data, default=str) if as_json else sentence)
