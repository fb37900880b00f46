"""A render between two steps, as bytes: what a worker that is taken away leaves to the next.

One safetensors file. Each of its tensors is the bytes of one engine `Request` (itself safetensors); its metadata holds
the facts that the pictures depend on, and a digest of it all. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save

import farm
from worker.engine.errors import EngineError
from worker.engine.request import Request
from worker.runner import RenderRequest

FORMAT = "inpaint-farm-state/1"

Facts = Mapping[str, str]


class StateRefused(Exception):
    """The bytes cannot be gone on with: damaged, or of another job, model or version. The message says which."""


@dataclass(frozen=True, eq=False)
class SavedState:
    """`requests`: one of all the job's pictures, or with `singly` one for each."""

    requests: tuple[Request, ...]
    singly: bool


def facts_of(request: RenderRequest, *, checkpoint_sha256: str, device: str, dtype: torch.dtype) -> Facts:
    """Everything that decides the pictures' bits, by name, as text: equal facts, equal pictures."""
    assets = [asset for _, asset in (*request.loras, *request.embeddings)]
    reference = ""
    if request.ip_adapter is not None:
        _, asset, picture = request.ip_adapter
        assets.append(asset)
        reference = _picture_sha256(picture)
    return {
        "job": sha256(request.job.to_json()).hexdigest(),
        "seed": str(request.seed),
        "image": _picture_sha256(request.image),
        "mask": _picture_sha256(request.mask),
        "weights": " ".join(asset.sha256 for asset in assets),
        "reference image": reference,
        "checkpoint": checkpoint_sha256,
        "version": farm.__version__,
        "torch": torch.__version__,
        "device": torch.device(device).type,
        "dtype": str(dtype),
    }


def pack(state: SavedState, facts: Facts) -> bytes:
    blobs = [request.to_bytes() for request in state.requests]
    about = {"format": FORMAT, "facts": json.dumps(dict(facts)), "singly": json.dumps(state.singly)}
    tensors = {f"request.{i}": torch.frombuffer(bytearray(blob), dtype=torch.uint8) for i, blob in enumerate(blobs)}
    return save(tensors, metadata={**about, "sha256": _digest(about, blobs)})


def unpack(data: bytes, facts: Facts, device: str) -> SavedState:
    """The state that `pack` wrote, its tensors on `device`. Raises StateRefused unless it is whole and of `facts`."""
    try:
        tensors = load(data)
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        digest = about.pop("sha256")
        blobs = [bytes(tensors[f"request.{i}"].numpy()) for i in range(len(tensors))]
        if about["format"] != FORMAT:
            raise StateRefused(f"it has the format {about['format']!r}, not {FORMAT!r}")
        if digest != _digest(about, blobs):
            raise StateRefused("it is damaged")
        saved, singly = json.loads(about["facts"]), json.loads(about["singly"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateRefused(f"it cannot be read ({type(error).__name__})") from None
    if changed := [name for name in sorted({*saved, *facts}) if saved.get(name) != facts.get(name)]:
        raise StateRefused(f"it is of another {', '.join(changed)}")
    try:
        return SavedState(tuple(Request.from_bytes(blob, device) for blob in blobs), singly)
    except (EngineError, KeyError, TypeError) as error:
        raise StateRefused(f"the engine does not take it ({error})") from None


def _digest(about: Mapping[str, str], blobs: list[bytes]) -> str:
    total = sha256(json.dumps(dict(sorted(about.items()))).encode())
    for blob in blobs:
        total.update(sha256(blob).digest())
    return total.hexdigest()


def _picture_sha256(picture: Image.Image) -> str:
    return sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
