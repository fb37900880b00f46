"""Tables for people: what was spent, and on what."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from producer.cost import Costs, Share

_MOST_ROWS = 12  # of LoRAs; the most expensive


def cost_table(costs: Costs, per_hour: float = 0.0) -> RenderableType:
    """GPU-seconds of all, by tenant and by LoRA, and failures by code."""
    table = Table(box=None, header_style="bold")
    for name in ("", "jobs", "images", "GPU-seconds", "s an image", "LoRA swaps, s", *(("cost",) if per_hour else ())):
        table.add_column(name, justify="left" if not name else "right", overflow="fold")
    table.add_row("all", *_cells(costs.total, per_hour))
    for title, shares in (("tenant", costs.tenants), ("LoRA", costs.loras)):
        _add(table, title, shares, per_hour)
    failures = ", ".join(f"{code} {count:,}" for code, count in costs.failures.most_common())
    return Group(table, Text(f"failed: {failures}")) if failures else table


def _add(table: Table, title: str, shares: Mapping[str, Share], per_hour: float) -> None:
    ranked = sorted(shares.items(), key=lambda item: -item[1].gpu_seconds)
    for name, share in ranked[:_MOST_ROWS]:
        table.add_row(f"{title} {name}", *_cells(share, per_hour))
    if len(ranked) > _MOST_ROWS:
        table.add_row(f"… {len(ranked) - _MOST_ROWS:,} more: see --json")


def _cells(share: Share, per_hour: float) -> list[str]:
    each = share.seconds_per_image
    cells = [
        f"{share.jobs:,}", f"{share.images:,}", f"{share.gpu_seconds:,.1f}", "–" if each is None else f"{each:.3f}",
        f"{share.lora_swap_seconds:.3f}",
    ]  # fmt: skip
    return [*cells, f"{share.price(per_hour):,.2f}"] if per_hour else cells


def printed(thing: RenderableType) -> None:
    Console().print(thing)
