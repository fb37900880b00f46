"""`farm lora`"""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import click

from farm.config import load_settings
from farm.errors import InputNotFound, LoraHashMismatch, LoraNonFinite, Misconfigured
from farm.lora_targets import LoraFacts, TargetTable, glimpse
from farm.models import ModelCard, read_card
from farm.weights import Header, read_header, refuse_non_finite, refuse_pickle
from producer.commands.common import connected, json_option, tell


@click.command()
@click.argument("file")
@click.option("--model", help="Whether it fits this model of the farm; else FARM_MODEL, if the farm has published it.")
@click.option("--table", type=click.Path(path_type=Path), help="A model's card as a file, instead of the farm's.")
@click.option("--sha256", "pinned", help="The hash that it must have.")
@json_option
def lora(file: str, model: str | None, table: Path | None, pinned: str | None, as_json: bool) -> None:
    """Say what a LoRA is, and whether it fits a model. FILE is a path, or an address in the farm's store."""
    refuse_pickle(file)
    data = _read(file)
    header = read_header(data)
    refuse_non_finite(data, header, invalid=LoraNonFinite)
    digest = sha256(data).hexdigest()
    if pinned not in (None, digest):
        raise LoraHashMismatch(f"{file} has sha256 {digest}, not {pinned}.")
    dtypes = sorted({tensor.dtype for tensor in header.tensors.values()})
    told = {"file": file, "sha256": digest, "bytes": len(data), "tensors": len(header.tensors), "dtypes": dtypes}
    card = _card(model, table)
    facts = card.judge(header) if card else glimpse(header)
    words = [
        f"{file}: {len(data):,} bytes, {len(header.tensors):,} tensors of {', '.join(dtypes)}, sha256 {digest}",
        *_trainer(header),
        *_described(facts),
        "fits the model" if card else "whether it fits is not known: the farm has published no such model; see --table",
    ]
    tell({**told, "fits": True if card else None, **asdict(facts)}, "\n".join(words), as_json=as_json)


def _described(facts: LoraFacts) -> list[str]:
    ranks = ", ".join(f"{rank} ({count:,} modules)" for rank, count in facts.ranks.items())
    parts = ", ".join(f"{count:,} modules of {part}" for part, count in facts.components.items())
    kinds = ", ".join(f"{count:,} {name}" for name, count in facts.families.items())
    return [f"written by {facts.written_by}: {kinds}; rank {ranks or 'not told'}", *([parts] if parts else [])]


def _read(file: str) -> bytes:
    if "://" in file:
        client = connected()
        return client.store.get(file, max_bytes=client.settings.max_lora_bytes).data
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InputNotFound(f"{file} cannot be read ({error.strerror}).") from None


def _trainer(header: Header) -> list[str]:
    """What its trainer noted of it."""
    known = ("ss_base_model_version", "ss_sd_model_name", "ss_network_module", "modelspec.architecture", "format")
    noted = [f"{name}={header.metadata[name]:.60}" for name in known if name in header.metadata]
    return [f"noted: {', '.join(noted)}"] if noted else []


def _card(model: str | None, table: Path | None) -> TargetTable | None:
    if table is not None:
        return _table(table)
    settings = load_settings()
    if not settings.store:  # a file can be looked at without a farm
        if model is not None:
            raise Misconfigured("--model names a model of a farm: set FARM_STORE, or give --table.")
        return None
    found = read_card(settings.open_store(), settings.store, model or settings.model)
    if found is None and model is not None:
        raise InputNotFound(f"The farm has published no model {model!r}; give --table, or ask who operates it.")
    return found.table() if found else None


def _table(path: Path) -> TargetTable:
    """Of a model's card, or of the bare table that the engine makes."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise InputNotFound(f"{path} cannot be read ({error.strerror}).") from None
    except ValueError:
        raise Misconfigured(f"{path} is not JSON.") from None
    if isinstance(data, dict) and "lora_targets" in data:
        return ModelCard.from_json(path.read_bytes()).table()
    return TargetTable.from_json(data)


COMMAND = lora
