"""A render between two steps, as bytes: what a worker that is taken away leaves to the next.

One safetensors file. Its tensor is the bytes of the engine's `Request` (itself safetensors); its metadata holds the
facts that the pictures depend on, and a digest of it all. Nothing in it is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save

import farm
from worker.engine.errors import EngineError
from worker.engine.request import Request
from worker.runner import RenderRequest

FORMAT = "inpaint-farm-state/2"

Facts = Mapping[str, str]


class StateRefused(Exception):
    """The bytes cannot be gone on with: damaged, or of another job, model or version. The message says which."""


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


def pack(request: Request, facts: Facts) -> bytes:
    blob = request.to_bytes()
    about = {"format": FORMAT, "facts": json.dumps(dict(facts))}
    tensor = torch.frombuffer(bytearray(blob), dtype=torch.uint8)
    return save({"request": tensor}, metadata={**about, "sha256": _digest(about, blob)})


def unpack(data: bytes, facts: Facts, device: str) -> Request:
    """The request that `pack` wrote, its tensors on `device`. Raises StateRefused unless it is whole and of `facts`."""
    try:
        blob = bytes(load(data)["request"].numpy())
        about = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        digest = about.pop("sha256")
        if about["format"] != FORMAT:
            raise StateRefused(f"it has the format {about['format']!r}, not {FORMAT!r}")
        if digest != _digest(about, blob):
            raise StateRefused("it is damaged")
        saved = json.loads(about["facts"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise StateRefused(f"it cannot be read ({type(error).__name__})") from None
    if changed := [name for name in sorted({*saved, *facts}) if saved.get(name) != facts.get(name)]:
        raise StateRefused(f"it is of another {', '.join(changed)}")
    try:
        return Request.from_bytes(blob, device)
    except (EngineError, KeyError, TypeError) as error:
        raise StateRefused(f"the engine does not take it ({error})") from None


def _digest(about: Mapping[str, str], blob: bytes) -> str:
    total = sha256(json.dumps(dict(sorted(about.items()))).encode())
    total.update(blob)
    return total.hexdigest()


def _picture_sha256(picture: Image.Image) -> str:
    return sha256(f"{picture.mode} {picture.size} ".encode() + picture.tobytes()).hexdigest()
