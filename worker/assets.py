"""What jobs bring besides pictures (LoRAs, embeddings, IP-Adapters), kept in memory for as long as it is asked for."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from farm import metrics
from farm.errors import InputNotFound, InvalidInput, LoraHashMismatch, LoraInvalid, LoraNonFinite, LoraNotFound
from farm.storage import ObjectStore, Progress
from farm.weights import read_header, refuse_non_finite, refuse_pickle

Key = tuple[str, str, Callable[[bytes], Any]]  # address, ETag, reader


@dataclass(frozen=True)
class Asset:
    """A weights file in memory. `weights` is what its reader made of it."""

    sha256: str
    weights: Any
    size: int  # of the file, bytes
    tier: str  # where it came from this time: resident (on the device), ram, disk or remote
    seconds: float = 0.0  # from asking for it to having it


@dataclass(frozen=True)
class Kind:
    """A sort of asset. `invalid` is what a file that is none is told to be; `placed` says whether its tensors are
    brought to the device before they are used.
    """

    read: Callable[[bytes], Any]
    invalid: type[InvalidInput] = LoraInvalid
    placed: bool = False

    def judged(self, data: bytes) -> Any:
        """What `read` makes of the file, once its header is within the limits of `farm.weights` and its numbers are
        finite.

        Raises UnsafeWeightsFormat, `invalid` (LoraNonFinite for the numbers of a LoRA), and what `read` raises.
        """
        header = read_header(data, invalid=self.invalid)
        refuse_non_finite(data, header, invalid=LoraNonFinite if self.invalid is LoraInvalid else self.invalid)
        return self.read(data)


class Assets:
    """Weights files by address and ETag, the least recently used dropped beyond `max_bytes`. Safe for many threads."""

    def __init__(self, store: ObjectStore, *, max_bytes: int, max_file_bytes: int):
        self._store, self._max_bytes, self._max_file_bytes = store, max_bytes, max_file_bytes
        self._held: OrderedDict[Key, Asset] = OrderedDict()
        self._lock = threading.Lock()

    def get(
        self,
        path: str,
        read: Callable[[bytes], Any],
        *,
        pinned: str | None,
        progress: Progress,
        invalid: type[InvalidInput] | None = None,
    ) -> Asset:
        """What `read` makes of the file, from memory if the object has not changed since.

        `pinned` is the sha256 it must have. With `invalid` the file is judged before it is read: its header within the
        limits of `farm.weights`, its numbers finite; `invalid` is what it is told to be otherwise (LoraNonFinite for
        the numbers of a LoRA). Raises LoraNotFound, LoraHashMismatch, UnsafeWeightsFormat, what `read` raises, and the
        store's errors.
        """
        refuse_pickle(path)
        try:
            key = (path, self._store.head(path).etag, read)  # one file read as two things is two assets
            asset = self._recall(key)
            if asset is None:
                return self._fetch(key, pinned, progress, invalid)
        except InputNotFound:
            raise LoraNotFound(f"There is no weights file at {path}; check the address.") from None
        _check_pin(path, asset.sha256, pinned)
        return asset

    def _recall(self, key: Key) -> Asset | None:
        with self._lock:
            asset = self._held.get(key)
            if asset is not None:
                self._held.move_to_end(key)
            return asset

    def _fetch(self, key: Key, pinned: str | None, progress: Progress, invalid: type[InvalidInput] | None) -> Asset:
        path, etag, read = key
        data = self._store.get(path, max_bytes=self._max_file_bytes, etag=etag, progress=progress).data
        digest = sha256(data).hexdigest()
        _check_pin(path, digest, pinned)
        if invalid is not None:
            header = read_header(data, invalid=invalid)
            refuse_non_finite(data, header, invalid=LoraNonFinite if invalid is LoraInvalid else invalid)
        asset = Asset(digest, read(data), len(data), "ram")
        with self._lock:
            self._held[key] = asset
            while sum(held.size for held in self._held.values()) > self._max_bytes and len(self._held) > 1:
                self._held.popitem(last=False)
            metrics.lora_resident.set(len(self._held))
        return replace(asset, tier="remote")


def _check_pin(path: str, digest: str, pinned: str | None) -> None:
    if pinned not in (None, digest):
        raise LoraHashMismatch(f"The file at {path} has sha256 {digest}, the job wants {pinned}.")
