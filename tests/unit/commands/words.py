"""A manifest of so many rows, and what a command wrote and said."""

import json
from pathlib import Path


def manifest(farm, rows, name="catalogue.jsonl", **fields):
    photo, mask = farm.photo("photo.png"), farm.mask("mask.png")
    lines = [{"custom_id": f"sku-{n}", "image": photo, "mask": mask, **fields} for n in range(rows)]
    Path(name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Path(name)


def written(folder="catalogue.run"):
    return [json.loads(line) for line in Path(folder, "results.ndjson").read_text().splitlines()]


def last(text):
    return json.loads(text.splitlines()[-1])
