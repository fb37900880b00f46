"""Writes the settings of farm/config.py into the chart's values.schema.json: names, types, limits.

    python helm/settings_schema.py

Run it when a setting was added or changed; a test fails until then. What the chart works out by itself is left out.
"""

from __future__ import annotations

import json
from pathlib import Path

from farm.config import Settings

SCHEMA = Path(__file__).parent / "inpaint-farm" / "values.schema.json"

# Setting → the value of the chart that it is made from.
BY_THE_CHART = {
    "redis_url": "redis, externalRedis",
    "allow_plain_redis": "externalRedis.allowPlain",
    "store": "store.url",
    "s3_endpoint": "store.endpoint",
    "s3_region": "store.region",
    "s3_path_style": "store.pathStyle",
    "tenants": "tenants",
    "model": "pools[].model",
    "model_path": "pools[].checkpoint",
    "lora_disk_path": "pools[].loraCache",
    "webhook_secret_file": "webhooks.existingSecret",
    "metrics_port": "always 9090",
    "metrics_host": "always 0.0.0.0",
    "worker_name": "the pod's name",
}
_KEPT = ("type", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum", "items")


def settings_schema() -> dict[str, object]:
    """The part of the schema that a map of settings must match."""
    fields = Settings.model_json_schema()["properties"]
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            name: {key: field[key] for key in _KEPT if key in field}
            for name, field in sorted(fields.items())
            if name not in BY_THE_CHART
        },
    }


def written() -> str:
    """The whole schema as it should be."""
    schema = json.loads(SCHEMA.read_text())
    schema["definitions"]["settings"] = settings_schema()
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(written())
