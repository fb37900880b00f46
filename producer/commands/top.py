"""`farm top`"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from farm.config import load_settings
from farm.errors import FarmError
from farm.ledger import Batches, Window, connect
from producer.commands.common import json_option
from producer.sightings import Sighting, from_prometheus, from_workers

_LINE = 140  # characters, where nothing says how wide a line may be
_STATES = ("starting", "ready", "draining")


@click.command()
@click.option("--worker", "workers", multiple=True, metavar="URL", envvar="FARM_WORKERS",
              help="A worker's /metrics, e.g. http://host:9090; a name of many machines is asked at each. May be "
              "repeated; else FARM_WORKERS, else this machine's FARM_METRICS_PORT.")  # fmt: skip
@click.option("--prometheus", metavar="URL", envvar="FARM_PROMETHEUS", help="Ask this Prometheus for all of them.")
@click.option("--every", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds between looks.")
@click.option("--once", is_flag=True, help="Look twice, print the difference, and end.")
@json_option
def top(workers: tuple[str, ...], prometheus: str | None, every: float, once: bool, as_json: bool) -> None:
    """Show the workers and the queue. Of each worker memory, rates, and how often a LoRA was there already."""
    settings = load_settings()
    addresses = workers or (f"http://127.0.0.1:{settings.metrics_port}",)

    def look() -> list[Sighting]:
        return from_prometheus(prometheus) if prometheus else from_workers(addresses)

    queue = _Queue(settings.redis_url)
    if once or as_json or not sys.stdout.isatty():
        before, began = look(), time.monotonic()
        time.sleep(every)
        rows = [_row(now, before, time.monotonic() - began) for now in look()]
        if as_json:
            click.echo(json.dumps({"workers": rows, "queue": queue.look()}))
        else:
            console = Console()
            console.width = console.width if console.is_terminal else _LINE
            console.print(_shown(rows, queue.look()))
        return
    _live(look, queue, every)


def _live(look: Callable[[], list[Sighting]], queue: _Queue, every: float) -> None:
    before, began = look(), time.monotonic()
    first = _shown([_row(now, before, every) for now in before], queue.look())
    with suppress(KeyboardInterrupt), Live(first, auto_refresh=False) as live:  # Ctrl-C is the way to leave it
        while True:
            time.sleep(every)
            now, at = look(), time.monotonic()
            live.update(_shown([_row(one, before, at - began) for one in now], queue.look()), refresh=True)
            before, began = now, at


class _Queue:
    """Depths by model, straight from the index; what went wrong instead, where a role may not read them."""

    def __init__(self, redis_url: str):
        client = connect(redis_url)
        self._window, self._batches = Window(client), Batches(client)

    def look(self) -> dict[str, Any]:
        try:
            models = {model for _, _, model in self._batches.unindexed()} | {model for _, model in self._batches.live()}
            return {model: self._depths(model) for model in sorted(models)}
        except FarmError as error:
            return {"error": str(error)}

    def _depths(self, model: str) -> dict[str, float]:
        depths = self._window.depths(model)
        waiting = sum(
            record.jobs * (record.shards - record.next_shard) // record.shards
            for tenant, batch, of in self._batches.unindexed()
            if of == model and (record := self._batches.record(tenant, batch)) is not None and record.shards
        )
        return {"unindexed": waiting, "ready": depths.ready, "hinted": depths.hinted, "running": depths.running,
                "oldest_seconds": round(depths.oldest, 1)}  # fmt: skip


def _row(now: Sighting, before: list[Sighting], seconds: float) -> dict[str, Any]:
    """What a worker did between two looks. Numbers are None where it did not say."""
    if now.trouble:
        return {"worker": now.name, "state": "away", "trouble": now.trouble}
    past = next((one for one in before if one.name == now.name and not one.trouble), now)

    def rate(metric: str, **labels: str) -> float:
        return max(0.0, now.total(metric, **labels) - past.total(metric, **labels)) / max(seconds, 1e-9)

    states = now.by("farm_worker_state", "state")
    tiers = now.by("farm_lora_swaps_total", "tier")
    swaps = sum(tiers.values())
    vram = now.by("farm_vram_bytes", "kind")
    return {
        "worker": now.name,
        "state": next((state for state in _STATES if states.get(state)), "?"),
        "images_per_second": round(rate("farm_images_total"), 3),
        "steps_per_second": round(rate("farm_denoise_steps_total"), 2),
        "busy": round(min(1.0, rate("farm_engine_busy_seconds_total")), 3),
        "vram_bytes": {kind: int(size) for kind, size in vram.items()},
        "images": int(now.total("farm_images_total")),
        "failed": int(now.total("farm_jobs_total", status="failed")),
        "lora_resident": int(now.total("farm_lora_resident")),
        "lora_hits": round((swaps - tiers.get("remote", 0.0)) / swaps, 3) if swaps else None,
        "lora_swaps": {tier: int(count) for tier, count in tiers.items() if count},
    }


def _shown(rows: list[dict[str, Any]], queue: dict[str, Any]) -> RenderableType:
    table = Table(box=None, header_style="bold")
    table.add_column("worker", overflow="fold", min_width=15)
    table.add_column("state", overflow="fold")
    for name in ("img/s", "steps/s", "busy", "memory", "images", "failed", "LoRA hits"):
        table.add_column(name, justify="right")
    for row in rows:
        if "trouble" in row:
            table.add_row(row["worker"], Text(f"away: {row['trouble']}", style="red"))
            continue
        vram, hits = row["vram_bytes"], row["lora_hits"]
        memory = _size(vram.get("allocated", 0)) + (f" of {_size(vram['total'])}" if vram.get("total") else "")
        table.add_row(
            row["worker"], row["state"], f"{row['images_per_second']:.2f}", f"{row['steps_per_second']:.1f}",
            f"{row['busy']:.0%}", memory, f"{row['images']:,}", f"{row['failed']:,}",
            "–" if hits is None else f"{hits:.0%}",
        )  # fmt: skip
    return Group(table, Text(""), _queue_table(queue))


def _queue_table(queue: dict[str, Any]) -> RenderableType:
    if "error" in queue:
        return Text(f"queue: {queue['error']}")
    if not queue:
        return Text("queue: empty")
    table = Table(box=None, header_style="bold")
    for name in ("model", "unindexed", "ready", "hinted", "running", "oldest"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for model, depths in queue.items():
        counts = [f"{depths[name]:,}" for name in ("unindexed", "ready", "hinted", "running")]
        table.add_row(model, *counts, f"{depths['oldest_seconds']:.0f} s")
    return table


def _size(count: float) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.0f} MiB"


COMMAND = top
