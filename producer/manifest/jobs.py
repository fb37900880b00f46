"""A row of a manifest → a job: translated, its relative addresses made whole, its fields checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from farm.schemas import InpaintJob
from producer.manifest.dialects import translated

Row = dict[str, Any]


def job_of(row: Row, *, folder: str, fields: Mapping[str, Any], name: str) -> InpaintJob:
    """The job of a row. `fields` hold for every row, over what it says; a row without custom_id is called `name`.

    Raises InvalidInput: an unknown field, a value out of range, an address that is none.
    """
    own = {**translated(row), **fields}
    if "lora_scale" in own and len(loras := list(own.get("loras") or ())) == 1:  # two columns of a CSV
        own = {**own, "loras": [{**loras[0], "scale": own["lora_scale"]}]}
        del own["lora_scale"]
    for field in ("image", "mask", "output"):
        if isinstance(own.get(field), str):
            own[field] = _whole(own[field], folder)
    for field in ("loras", "embeddings"):
        if isinstance(own.get(field), (list, tuple)):
            own[field] = [_whole_within(entry, folder) for entry in own[field]]
    if isinstance(own.get("ip_adapter"), dict):
        own["ip_adapter"] = _whole_within(own["ip_adapter"], folder)
    if not own.get("custom_id"):
        own["custom_id"] = name
    elif isinstance(own["custom_id"], int):  # a column of numbers
        own["custom_id"] = str(own["custom_id"])
    return InpaintJob.model_validate(own)


def _whole(address: str, folder: str) -> str:
    """An address without a scheme is a path beside the manifest (or, of a manifest on this machine, from the root)."""
    if "://" in address or address[:5].lower() == "data:" or not address:
        return address
    if address.startswith("/"):
        return f"file://{address}" if folder.startswith("file://") else address
    return folder + address.removeprefix("./")


def _whole_within(entry: Any, folder: str) -> Any:
    if not isinstance(entry, dict):
        return entry
    whole = {name: _whole(entry[name], folder) for name in ("path", "image") if isinstance(entry.get(name), str)}
    return {**entry, **whole}
