"""What a farm publishes of each model it serves, so that a client can judge a job for it without the model.

`<store>/models/<name>.json` is one JSON object: `version`, `model`, `checkpoint_sha256`, `size_buckets` ([[width,
height], …]) and `lora_targets`, the engine's table of the modules that a LoRA can change.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from farm import keys
from farm.errors import InputForbidden, InputNotFound, Misconfigured
from farm.lora_targets import TargetTable
from farm.storage import ObjectStore, shown

VERSION = 1
_MAX_BYTES = 64 * 1024**2  # every spelling of every module of a full-size model: 3 MB


@dataclass(frozen=True)
class ModelCard:
    model: str
    checkpoint_sha256: str
    size_buckets: tuple[tuple[int, int], ...]
    lora_targets: Mapping[str, Any]
    version: int = VERSION

    def table(self) -> TargetTable:
        """Raises Misconfigured for a table that this release cannot read."""
        return TargetTable.from_json(self.lora_targets)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Raises Misconfigured."""
        try:
            fields = json.loads(data)
            buckets = tuple((int(width), int(height)) for width, height in fields.pop("size_buckets"))
            card = cls(**fields, size_buckets=buckets)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Misconfigured(
                f"The model's card cannot be read ({type(error).__name__}); publish it again."
            ) from None
        if card.version != VERSION:
            raise Misconfigured(f"The model's card is of version {card.version}; this release reads {VERSION}.")
        return card


def publish(store: ObjectStore, root: str, card: ModelCard) -> None:
    """Write the card, over an older one of the same model."""
    store.put(keys.card(root, card.model), card.to_json(), content_type="application/json", create_only=False)


def read_card(store: ObjectStore, root: str, model: str) -> ModelCard | None:
    """The model's card; None if it was not published, or this role may not read it. Raises Misconfigured."""
    uri = keys.card(root, model)
    try:
        return ModelCard.from_json(store.get(uri, max_bytes=_MAX_BYTES).data)
    except (InputNotFound, InputForbidden):
        return None
    except Misconfigured as error:
        raise Misconfigured(f"{shown(uri)}: {error}") from None
