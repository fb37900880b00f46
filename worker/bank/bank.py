"""The bank: LoRAs (and whatever else jobs bring) on the device, in RAM, on disk and in the store, as near as needed."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from farm import metrics
from farm.errors import (
    InputChanged,
    InputNotFound,
    InvalidInput,
    LoraNotFound,
    Preempted,
    UnsafeWeightsFormat,
    from_foreign,
)
from farm.schemas import LoraRef
from farm.storage import ObjectStore, Progress
from farm.weights import refuse_pickle
from worker.assets import Asset, Kind
from worker.bank.disk import DiskTier
from worker.bank.flights import Flight, Flights, own
from worker.bank.tensors import Place, nbytes
from worker.bank.tier import Tier
from worker.bank.versions import Ref, Version, Versions, check_pin, serves

_REFUSED_KEPT = 1024  # files known to be bad for good


@dataclass(frozen=True)
class Budgets:
    """Bytes of each tier. Device memory holds LoRAs' factors; where the device is the CPU, RAM is all there is."""

    device: int
    ram: int
    disk: int = 0
    file: int = 2 * 1024**3  # of one file: what is larger is refused


@dataclass(frozen=True)
class _Loaded:
    asset: Asset  # in the nearest tier of its kind, with the tier it came from
    version: Version


@dataclass(frozen=True)
class _Look:
    """What is known of an object before it is read: where that is known, which bytes it holds."""

    etag: str
    size: int
    version: Version | None


class LoraBank:
    """Weights files by what they are (their sha256), each read once however many jobs want it at the same time.

    For many threads. `hold` waits, so it is called off the engine's thread; what it gives needs no more work but to be
    put on the model. Every read, parse and copy to the device is made by the bank's own threads.
    """

    def __init__(
        self,
        store: ObjectStore,
        read_lora: Callable[[bytes], Any],
        *,
        device: str,
        budgets: Budgets,
        folder: Path | None = None,
        others: Mapping[type, Kind] | None = None,
        threads: int = 4,
        place: Place | None = None,
    ):
        """`folder` is where the disk tier lies, none without it. `others` are further kinds by their refs' class.

        `place` brings weights to the device; without it, the way for `device`. Raises Misconfigured if `folder` cannot
        be had.
        """
        self._store, self._max_file_bytes = store, budgets.file
        self._kinds: dict[type, Kind] = {LoraRef: Kind(read_lora, placed=True), **(others or {})}
        self._resident: Tier[Asset] = Tier("resident", budgets.device)
        self._place = self._way_to(device, place)
        self._ram: Tier[Asset] = Tier("ram", budgets.ram)
        self._disk = DiskTier(folder, budgets.disk) if folder is not None and budgets.disk else None
        self._versions, self._flights = Versions(), Flights(threads)
        self._refused: OrderedDict[Hashable, BaseException] = OrderedDict()
        self._refused_lock = threading.Lock()

    def _way_to(self, device: str, place: Place | None) -> Place | None:
        """None for what is no CUDA device: weights are on the CPU already, where JAX takes them from, too."""
        if place is None and not device.startswith("cuda"):
            return None
        from worker.bank.placement import CudaPlacement, within_memory  # imports torch: only for who needs it

        return within_memory(place or CudaPlacement(device), self._resident.clear, device)

    @contextmanager
    def hold(
        self, refs: Iterable[Ref], *, progress: Progress | None = None, since: float | None = None
    ) -> Iterator[tuple[Asset, ...]]:
        """The refs' assets, in their order, none of which leaves its tier until the end of the `with`.

        A ref without a sha256 means what its object is: the object as it was seen at or after `since`
        (time.monotonic; now, if not given), for instance when the job was claimed and its refs prefetched. `progress`
        hears of the bytes that move, and may raise to end the wait. Raises LoraNotFound, LoraHashMismatch,
        UnsafeWeightsFormat, InputChanged (the object was replaced after it had been looked at), Resource (no room on
        the device), Preempted after `close`, what the kind's `judged` raises, and the store's errors.
        """
        refs, since = tuple(refs), time.monotonic() if since is None else since
        begin = time.monotonic()
        for ref in refs:
            refuse_pickle(ref.path)
        # All are on their way before the first is waited for.
        flights = [
            None if self._known(ref, since) in self._nearest(ref)[0] else self._start(ref, since, urgent=True)
            for ref in refs
        ]
        with ExitStack() as held:
            yield tuple(
                self._take(ref, flight, since, begin, progress, held) for ref, flight in zip(refs, flights, strict=True)
            )

    def prefetch(self, refs: Iterable[Ref], *, since: float | None = None) -> None:
        """Bring the refs as near as there is room, for jobs that do not run yet. Returns at once and raises nothing:
        what is wrong with a ref is told to who holds it.
        """
        since = time.monotonic() if since is None else since
        for ref in refs:
            with suppress(UnsafeWeightsFormat, Preempted):
                refuse_pickle(ref.path)
                self._start(ref, since, urgent=False)

    def close(self) -> None:
        """Load nothing more. What is held stays good."""
        self._flights.close()

    # Asking

    def _take(
        self, ref: Ref, flight: Flight | None, since: float, begin: float, progress: Progress | None, held: ExitStack
    ) -> Asset:
        """The asset, held, from the tier that it is in or from the flight that brings it."""
        tier, _ = self._nearest(ref)
        while True:
            key = self._known(ref, since)
            if flight is None and (asset := tier.hold(key)) is not None:
                held.callback(self._release, tier, key)
                metrics.lora_load_seconds.labels(tier.name).observe(0.0)
                return replace(asset, tier=tier.name, seconds=time.monotonic() - begin)
            flight = flight or self._start(ref, since, urgent=True)
            self._flights.wait(flight, progress)
            # Where a look failed that was made for another job before this one's time, there may be more to see by now.
            loaded = None if flight.failed and flight.since < since else flight.result()
            flight = None
            if loaded is not None and serves(ref, loaded.version, since):
                key = (type(ref), loaded.asset.sha256)
                asset = tier.put_and_hold(key, loaded.asset, _size(loaded.asset))
                held.callback(self._release, tier, key)
                self._count_resident()
                return replace(asset, tier=loaded.asset.tier, seconds=time.monotonic() - begin)

    def _release(self, tier: Tier[Asset], key: Hashable) -> None:
        tier.release(key)
        self._count_resident()

    def _known(self, ref: Ref, since: float) -> tuple[type, str] | None:
        """The key of what the ref means, where that is settled without the store."""
        version = self._versions.last(ref.path)
        return (type(ref), version.sha256) if version and serves(ref, version, since) else None

    def _nearest(self, ref: Ref) -> tuple[Tier[Asset], Place | None]:
        """The tier that jobs take this kind from, and how it gets there from RAM."""
        place = self._place if self._kinds[type(ref)].placed else None
        return (self._resident, place) if place else (self._ram, None)

    def _start(self, ref: Ref, since: float, *, urgent: bool) -> Flight:
        key = (type(ref), ref.path, ref.sha256)
        return self._flights.start(key, lambda flight: self._load(ref, flight), since, urgent=urgent)

    # Loading, in the bank's threads

    def _load(self, ref: Ref, flight: Flight) -> _Loaded | None:
        """The ref's asset in its nearest tier; None if it was only wanted ahead of time and there is no room there."""
        begin = time.monotonic()
        try:
            asset, version = self._in_ram(ref, self._looked_up(ref, flight.since), flight)
        except InputNotFound:
            raise LoraNotFound(f"There is no weights file at {ref.path}; check the address.") from None
        _, place = self._nearest(ref)
        if asset is not None and place is not None:
            asset = self._on_device((type(ref), asset.sha256), asset, place, flight)
        self._count_resident()
        if asset is None:
            return None
        metrics.lora_load_seconds.labels(asset.tier).observe(time.monotonic() - begin)
        return _Loaded(asset, version)

    def _looked_up(self, ref: Ref, since: float) -> _Look:
        last = self._versions.last(ref.path)
        if last is None and self._disk is not None:
            last = self._disk.version(ref.path)
        if serves(ref, last, since):
            return _Look(last.etag, last.size, last)
        if last is None and ref.sha256 is not None:  # whatever is there, its bytes tell whether they are meant
            return _Look("", 1, None)
        at, info = time.monotonic(), self._store.head(ref.path)
        if last is None or info.etag != last.etag:
            return _Look(info.etag, info.size, None)
        check_pin(ref, last.sha256)
        return _Look(last.etag, last.size, replace(last, at=at))

    def _in_ram(self, ref: Ref, look: _Look, flight: Flight) -> tuple[Asset | None, Version | None]:
        version = look.version
        if version is not None:
            self._versions.note(ref.path, version)
            key = (type(ref), version.sha256)
            self._refuse_known(key)
            for tier in (self._resident, self._ram):
                if (asset := tier.find(key, ahead=not flight.urgent)) is not None:
                    return replace(asset, tier=tier.name), version
        if not flight.urgent and not self._ram.has_room(look.size) and self._disk is None:
            return None, version
        data, version, tier_name = self._bytes(ref, look, flight)
        key = (type(ref), version.sha256)
        self._refuse_known(key)
        if not flight.urgent and not self._ram.has_room(len(data)):
            return None, version
        asset = Asset(version.sha256, self._judged(key, data), len(data), "ram")
        self._ram.put(key, asset, _size(asset), ahead=not flight.urgent)
        return replace(asset, tier=tier_name), version

    def _bytes(self, ref: Ref, look: _Look, flight: Flight) -> tuple[bytes, Version, str]:
        version = look.version
        if version is not None and self._disk is not None:
            data = self._disk.read(version.sha256, flight.moved)
            if data is not None:
                return data, version, "disk"
        at = time.monotonic()
        etag = look.etag if ref.sha256 is None else None  # pinned, it may have been written again with the same bytes
        found = self._store.get(ref.path, max_bytes=self._max_file_bytes, etag=etag, progress=flight.moved)
        digest = sha256(found.data).hexdigest()
        check_pin(ref, digest)
        if version is not None and digest != version.sha256:
            raise InputChanged(f"The file at {ref.path} changed while jobs that name it run; submit them again.")
        version = Version(found.etag, len(found.data), digest, at)
        self._versions.note(ref.path, version)
        if self._disk is not None:
            disk = self._disk

            def keep() -> None:
                disk.write(digest, found.data)
                disk.note(ref.path, version)

            flight.afterwards = keep
        return found.data, version, "remote"

    def _judged(self, key: tuple[type, str], data: bytes) -> Any:
        try:
            return self._kinds[key[0]].judged(data)
        except Exception as error:
            if isinstance(from_foreign(error), InvalidInput):  # these bytes will not get better
                with self._refused_lock:
                    self._refused[key] = own(error)
                    if len(self._refused) > _REFUSED_KEPT:
                        self._refused.popitem(last=False)
            raise

    def _refuse_known(self, key: Hashable) -> None:
        with self._refused_lock:
            error = self._refused.get(key)
        if error is not None:
            raise own(error)

    def _on_device(self, key: tuple[type, str], asset: Asset, place: Place, flight: Flight) -> Asset | None:
        if asset.tier == self._resident.name:
            return asset
        if not flight.urgent and not self._resident.has_room(_size(asset)):
            return None
        placed = replace(asset, weights=place(asset.weights))
        self._resident.put(key, placed, _size(placed), ahead=not flight.urgent)
        return placed

    def _count_resident(self) -> None:
        metrics.lora_resident.set(len(self._resident.keys() | self._ram.keys()))


def _size(asset: Asset) -> int:
    """Bytes of memory: the tensors', or the file's where that is more (they may be views of it)."""
    return max(asset.size, nbytes(asset.weights))
