"""Which of many names came before, in memory that does not grow with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import sqlite3

_FEW = 100_000  # names that are held in memory; more go into a file
_CACHE_KIB = 16 * 1024  # of that file


class Distinct:
    """Names seen so far, kept as the eight bytes of a hash. For one user at a time.

    Of n names, two different ones are taken for the same with a chance of n²/2⁶⁵: 3 in a million for ten million.
    """

    def __init__(self) -> None:
        self._few: set[int] = set()
        self._many: sqlite3.Connection | None = None

    def add(self, name: str) -> bool:
        """Whether it is new."""
        return self.again((name,)) is None

    def again(self, names: Sequence[str]) -> str | None:
        """The first of these that came before, None if all are new. Many at once are quicker than one by one."""
        for place, name in enumerate(names):
            if self._many is not None:
                return self._again_of_many(self._many, names[place:])
            key = hash(name)
            if key in self._few:
                return name
            self._few.add(key)
            if len(self._few) > _FEW:
                self._many = _table(self._few)
                self._few = set()
        return None

    @staticmethod
    def _again_of_many(table: sqlite3.Connection, names: Sequence[str]) -> str | None:
        from sqlite3 import IntegrityError

        before = table.total_changes
        try:
            table.executemany("INSERT OR FAIL INTO names VALUES (?)", ((hash(name),) for name in names))
        except IntegrityError:
            return names[table.total_changes - before]
        return None

    def close(self) -> None:
        if self._many is not None:
            self._many.close()


def _table(names: set[int]) -> sqlite3.Connection:
    import sqlite3  # only for who has so many

    # No name: a database of its own, in a temporary file once its cache is full, gone when it is closed.
    table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
        table.execute(f"PRAGMA {setting}")
    table.execute("CREATE TABLE names (hash INTEGER PRIMARY KEY)")
    table.execute("BEGIN")
    table.executemany("INSERT INTO names VALUES (?)", ((name,) for name in sorted(names)))
    return table
