"""Writes the Grafana dashboard, helm/inpaint-farm/dashboards/inpaint-farm.json, from the table of its panels.

    python helm/dashboard.py

Edit the table, run this, and look at the result in `docker compose`'s Grafana.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

OUT = Path(__file__).parent / "inpaint-farm" / "dashboards" / "inpaint-farm.json"

FARM = 'namespace=~"$namespace"'  # where no label says the namespace, "All" matches its absence too
MODEL = f'{FARM},model=~"$model"'
RATE = "$__rate_interval"
WORKERS = f'sum(farm_worker_state{{{FARM},state=~"ready|draining"}})'
BACKLOG = f"sum by (model) (max by (model, growth) (farm_backlog_gpu_seconds{{{MODEL}}}))"


class Panel(NamedTuple):
    title: str
    what: str  # shown behind the "i"
    unit: str  # Grafana's
    queries: tuple[tuple[str, str], ...]  # legend, PromQL
    width: int = 8  # of 24
    kind: str = "timeseries"
    stack: bool = False
    at_least: float | None = 0


def _quantile(q: float, metric: str, by: str = "") -> str:
    labels = MODEL if metric == "farm_job_seconds" else FARM
    return f"histogram_quantile({q}, sum by (le{by}) (rate({metric}_bucket{{{labels}}}[{RATE}])))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        Panel("Images an hour", "Pictures written, all workers.", "short",
              (("", f"3600 * sum(rate(farm_images_total{{{MODEL}}}[5m]))"),), 4, "stat"),
        Panel("Jobs waiting", "Accepted and not ended: in the store, ready, hinted or running.", "short",
              (("", f"sum(farm_queue_jobs{{{MODEL}}})"),), 4, "stat"),
        Panel("Time to drain", "Backlog in device seconds, divided by the workers there are.", "s",
              (("", f"sum(farm_backlog_gpu_seconds{{{MODEL}}}) / {WORKERS}"),), 4, "stat"),
        Panel("Workers", "Ready or draining.", "short", (("", WORKERS),), 4, "stat"),
        Panel("Failed", "Share of the jobs that ended in the last half hour.", "percentunit",
              (("", f'sum(rate(farm_jobs_total{{{MODEL},status="failed"}}[30m])) '
                    f"/ sum(rate(farm_jobs_total{{{MODEL}}}[30m]))"),), 4, "stat"),
        Panel("Cost of 1,000 images", "Workers × the price above ÷ images, over the last hour.", "currencyUSD",
              (("", f'1000 * $price * avg_over_time(({WORKERS})[1h:1m]) '
                    f"/ (3600 * sum(rate(farm_images_total{{{MODEL}}}[1h])))"),), 4, "stat"),
    ),
    "Throughput": (
        Panel("Images an hour", "Pictures written.", "short",
              (("{{model}}", f"3600 * sum by (model) (rate(farm_images_total{{{MODEL}}}[{RATE}]))"),)),
        Panel("Jobs ended", "By how they ended, and by error.", "short",
              (("{{status}} {{error}}",
                f"3600 * sum by (status, error) (rate(farm_jobs_total{{{MODEL}}}[{RATE}]))"),), stack=True),
        Panel("Steps a second", "Denoising steps, one a row of a batch.", "short",
              (("{{pod}}{{instance}}", f"sum by (pod, instance) (rate(farm_denoise_steps_total{{{FARM}}}[{RATE}]))"),)),
        Panel("Busy share", "Of the wall clock, inside model forwards: text encoder, VAE, UNet.", "percentunit",
              (("{{pod}}{{instance}}",
                f"sum by (pod, instance) (rate(farm_engine_busy_seconds_total{{{FARM}}}[{RATE}]))"),)),
        Panel("Stage times, median", "Seconds a job spends in each stage.", "s",
              (("{{stage}}", _quantile(0.5, "farm_job_seconds", ", stage")),)),
        Panel("Stage times, 95th percentile", "Seconds a job spends in each stage.", "s",
              (("{{stage}}", _quantile(0.95, "farm_job_seconds", ", stage")),)),
    ),
    "Queue": (
        Panel("Jobs by state", "unindexed: accepted, still in the store; ready; hinted to workers; running.", "short",
              (("{{state}}", f"sum by (state) (farm_queue_jobs{{{MODEL}}})"),), stack=True),
        Panel("Backlog", "Seconds of one device that the work left will take: what autoscaling divides by the wanted "
              "time to drain.", "s", (("{{model}}", BACKLOG),)),
        Panel("Queue age", "Of the oldest job that could run.", "s",
              (("{{model}}", f"max by (model) (farm_queue_oldest_seconds{{{MODEL}}})"),)),
        Panel("Hinted", "Jobs handed to workers, a second.", "short",
              (("{{model}}", f"sum by (model) (rate(farm_hinted_jobs_total{{{MODEL}}}[{RATE}]))"),)),
        Panel("Begun again, given up, brought back", "Jobs begun again (lost worker, retry, unanswered hint); given "
              "up; brought back into the index from the store.", "short",
              (("begun again", f"sum(increase(farm_redeliveries_total{{{FARM}}}[{RATE}]))"),
               ("given up", f"sum(increase(farm_dead_jobs_total{{{FARM}}}[{RATE}]))"),
               ("brought back", f"sum(increase(farm_reconciled_total{{{FARM}}}[{RATE}]))"))),
        Panel("Webhooks", "Tries to send one, by what came of it; and pictures deleted that no result names.", "short",
              (("{{outcome}}", f"sum by (outcome) (increase(farm_webhooks_total{{{FARM}}}[{RATE}]))"),
               ("orphans deleted", f"sum(increase(farm_orphans_total{{{FARM}}}[{RATE}]))"))),
        Panel("Workers", "By state; cost follows ready and draining.", "short",
              (("{{state}}", f"sum by (state) (farm_worker_state{{{FARM}}})"),), stack=True),
    ),
    "LoRA": (
        Panel("Sets put on, by where they came from", "resident: on the device already; ram; disk; remote: the store.",
              "short", (("{{tier}}", f"sum by (tier) (rate(farm_lora_swaps_total{{{FARM}}}[{RATE}]))"),), stack=True),
        Panel("Time to put a set on", "Of LoRAs that were brought already.", "s",
              (("median", _quantile(0.5, "farm_lora_swap_seconds")),
               ("95th", _quantile(0.95, "farm_lora_swap_seconds")))),
        Panel("Time to bring a file", "95th percentile, by the tier it came from.", "s",
              (("{{tier}}", _quantile(0.95, "farm_lora_load_seconds", ", tier")),)),
        Panel("Kept", "Weights files, by tier.", "bytes",
              (("{{tier}}", f"sum by (tier) (farm_lora_bytes{{{FARM}}})"),), stack=True),
        Panel("Held ready", "LoRAs in memory, a worker.", "short",
              (("{{pod}}{{instance}}", f"farm_lora_resident{{{FARM}}}"),)),
        Panel("Dropped for room", "Weights files, by tier.", "short",
              (("{{tier}}", f"sum by (tier) (increase(farm_lora_evictions_total{{{FARM}}}[{RATE}]))"),)),
    ),
    "Device and cost": (
        Panel("Rows of a forward", "Of the UNet: two a picture under guidance. Jobs share a forward.", "short",
              (("median", _quantile(0.5, "farm_engine_batch_size")),
               ("95th", _quantile(0.95, "farm_engine_batch_size")))),
        Panel("Device memory", "On a CPU the process's resident memory.", "bytes",
              (("{{pod}}{{instance}} {{kind}}",
                f'max by (pod, instance, kind) (farm_vram_bytes{{{FARM},kind!="total"}})'),)),
        Panel("Peak of device memory", "Of what the device has.", "percentunit",
              (("{{pod}}{{instance}}",
                f'max by (pod, instance) (farm_vram_bytes{{{FARM},kind="peak"}}) '
                f'/ (max by (pod, instance) (farm_vram_bytes{{{FARM},kind="total"}}) > 0)'),)),
        Panel("Faults", "memory: a job ran out of it; sticky: the device's context is lost; drift: of base weights.",
              "short", (("{{kind}}", f"sum by (kind) (increase(farm_gpu_faults_total{{{FARM}}}[{RATE}]))"),
                        ("foreign messages", f"sum(increase(farm_dropped_messages_total{{{FARM}}}[{RATE}]))"))),
        Panel("Cost an hour", "Workers × the price above.", "currencyUSD", (("cost", f"$price * {WORKERS}"),)),
        Panel("Cost of the backlog", "Backlog in device hours × the price above.", "currencyUSD",
              (("{{model}}", f"$price * {BACKLOG} / 3600"),)),
    ),
}  # fmt: skip


def _panel(number: int, panel: Panel, x: int, y: int) -> dict[str, object]:
    height = 4 if panel.kind == "stat" else 8
    defaults: dict[str, object] = {"unit": panel.unit, "min": panel.at_least}
    options: dict[str, object] = {"reduceOptions": {"calcs": ["lastNotNull"]}, "colorMode": "none"}
    if panel.kind == "timeseries":
        defaults["custom"] = {
            "fillOpacity": 30 if panel.stack else 8,
            "stacking": {"mode": "normal" if panel.stack else "none"},
            "showPoints": "never",
        }
        options = {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.what,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": height},
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(65 + index), "expr": expr, "legendFormat": legend or "__auto"}
            for index, (legend, expr) in enumerate(panel.queries)
        ],
    }


def _panels() -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    y = 0
    for row, panels in ROWS.items():
        found.append({
            "id": len(found) + 1, "type": "row", "title": row, "collapsed": False, "panels": [],
            "gridPos": {"x": 0, "y": y, "w": 24, "h": 1},
        })  # fmt: skip
        y, x = y + 1, 0
        height = 4 if panels[0].kind == "stat" else 8
        for panel in panels:
            if x + panel.width > 24:
                x, y = 0, y + height
            found.append(_panel(len(found) + 1, panel, x, y))
            x += panel.width
        y += height
    return found


def _query(name: str, label: str, query: str, every: str) -> dict[str, object]:
    return {
        "name": name, "label": label, "type": "query", "query": query, "definition": query, "refresh": 2, "sort": 1,
        "datasource": {"type": "prometheus", "uid": "${datasource}"}, "includeAll": True, "multi": True,
        "allValue": every, "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def dashboard() -> dict[str, object]:
    variables = [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        _query("namespace", "Farm", "label_values(farm_queue_jobs, namespace)", ".*"),
        _query("model", "Model", 'label_values(farm_queue_jobs{namespace=~"$namespace"}, model)', ".*"),
        {"name": "price", "label": "Price of a worker's hour", "type": "textbox", "query": "1.00",
         "current": {"text": "1.00", "value": "1.00"}},
    ]  # fmt: skip
    return {
        "uid": "inpaint-farm",
        "title": "Inpaint Farm",
        "tags": ["inpaint-farm"],
        "schemaVersion": 39,
        "timezone": "browser",
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "annotations": {"list": []},
        "panels": _panels(),
    }


def written() -> str:
    """The file as it should be."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    OUT.write_text(written())
