"""A hint from the wire is believed only if it is one."""

from dataclasses import asdict

import pytest

from farm.errors import FarmError
from farm.ledger import JobRef
from farm.queue import _level, read_hint

REF = JobRef("a" * 32, "default", "b" * 32, "sd15-inpaint", 0, 0, 100)


def test_there_and_back():
    assert read_hint(asdict(REF)) == REF


@pytest.mark.parametrize(
    "change",
    [{"job_id": 5}, {"tenant": ".."}, {"batch_id": "a/b"}, {"offset": -1}, {"length": 0}, {"length": 10**9},
     {"shard": True}, {"more": 1}, {"model": None}],
    ids=str,
)  # fmt: skip
def test_what_is_no_hint_is_refused(change):
    with pytest.raises((TypeError, ValueError, FarmError)):
        read_hint({**asdict(REF), **change})


def test_a_higher_priority_goes_first():
    levels = [_level(priority) for priority in (0, 30, 50, 100)]
    assert levels == sorted(levels, reverse=True) and levels[0] == 9 and levels[-1] == 0
