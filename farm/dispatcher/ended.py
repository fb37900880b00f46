"""Which jobs of a batch have a result: one LIST of names, kept in 20 bytes each."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable

_NAME = re.compile(r"([0-9a-f]{32})\.([0-9]{1,9})\.json")
_ID, _ENTRY = 16, 20


class Ended:
    """`names`: of result objects (`<job>.<generation>.json`), in the order of their bytes, as every store lists them.

    What has no such name is passed over.
    """

    def __init__(self, names: Iterable[str]):
        self._entries = bytearray()
        for name in names:
            if found := _NAME.fullmatch(name):
                self._entries += bytes.fromhex(found[1]) + int(found[2]).to_bytes(_ENTRY - _ID, "big")

    def __len__(self) -> int:
        return len(self._entries) // _ENTRY

    def has(self, job_id: str, generation: int) -> bool:
        """Whether there is a result of this very generation."""
        if not _NAME.fullmatch(f"{job_id}.0.json"):
            return False
        job = bytes.fromhex(job_id)
        at = bisect_left(range(len(self)), job, key=self._id)
        while at < len(self) and self._id(at) == job:  # generations are listed as text: 10 comes before 2
            if int.from_bytes(self._entries[at * _ENTRY + _ID : (at + 1) * _ENTRY], "big") == generation:
                return True
            at += 1
        return False

    def _id(self, at: int) -> bytes:
        return bytes(self._entries[at * _ENTRY : at * _ENTRY + _ID])
