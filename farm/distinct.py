"""Which of many names came before, in memory that does not grow with them."""

from __future__ import annotations

import sqlite3

_CACHE_KIB = 32 * 1024  # what is held in memory; more goes to a temporary file


class Distinct:
    """Names seen so far, kept as the eight bytes of a hash. For one user at a time.

    Of n names, two different ones are taken for the same with a chance of n²/2⁶⁵: 3 in a million for ten million.
    """

    def __init__(self) -> None:
        # An empty name is a database of its own, in a temporary file once the cache is full, gone when it is closed.
        self._names = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            self._names.execute(f"PRAGMA {setting}")
        self._names.execute("CREATE TABLE names (hash INTEGER PRIMARY KEY)")
        self._names.execute("BEGIN")

    def add(self, name: str) -> bool:
        """Whether it is new."""
        return self._names.execute("INSERT OR IGNORE INTO names VALUES (?)", (hash(name),)).rowcount == 1

    def close(self) -> None:
        self._names.close()
