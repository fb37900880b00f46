"""A hint from the wire is believed only if it is one."""

import pytest

from farm.errors import FarmError
from farm.ledger import JobRef
from farm.queue import MAX_HINT, Hints, read_hint

REFS = [JobRef(letter * 32, "default", "b" * 32, "sd15-inpaint", 0, 100 * n, 100) for n, letter in enumerate("acd")]


class Wire:
    """Stands where Celery does, and keeps what it was given."""

    def send_task(self, name, kwargs, **options):
        self.hint, self.options = kwargs["hint"], options


def sent(refs):
    wire = Wire()
    Hints(wire).publish(refs)
    return wire.hint


def test_there_and_back():
    assert read_hint(sent(REFS)) == REFS


@pytest.mark.parametrize(
    "change",
    [{"tenant": ".."}, {"batch_id": "a/b"}, {"model": None}, {"jobs": []}, {"jobs": None},
     {"jobs": [["a" * 32, 0, 0, 100, 0, 50]] * (MAX_HINT + 1)}],
    ids=str,
)  # fmt: skip
def test_what_is_no_hint_is_refused(change):
    with pytest.raises((KeyError, TypeError, ValueError, FarmError)):
        read_hint({**sent(REFS), **change})


@pytest.mark.parametrize(
    "job",
    [[5, 0, 0, 100, 0, 50], ["a/b", 0, 0, 100, 0, 50], ["a", -2, 0, 100, 0, 50], ["a", 0, -1, 100, 0, 50],
     ["a", 0, 0, 0, 0, 50], ["a", 0, 0, 10**9, 0, 50], ["a", True, 0, 100, 0, 50], ["a", 0, 0, 100, -1, 50],
     ["a", 0, 0, 100, 0, 101], ["a", 0, 0, 100, 0], ["a", 0, 0, 100, 0, 50, 1], [], "abcdef"],
    ids=str,
)  # fmt: skip
def test_a_job_of_a_hint_that_is_none_is_refused(job):
    with pytest.raises((KeyError, TypeError, ValueError, FarmError)):
        read_hint({**sent(REFS), "jobs": [job]})
