"""Names that come twice are found, however many came between, in memory that stays as it is."""

import tracemalloc
from contextlib import closing

import pytest

from farm import distinct
from farm.distinct import Distinct


@pytest.mark.parametrize("few", [10, 100_000])
def test_a_name_is_new_once(monkeypatch, few):
    monkeypatch.setattr(distinct, "_FEW", few)
    with closing(Distinct()) as names:
        assert all(names.add(f"sku-{number}") for number in range(1000))
        assert not any(names.add(f"sku-{number}") for number in range(1000))
        assert names.add("another")


@pytest.mark.parametrize("few", [10, 100_000])
def test_of_many_names_the_first_that_came_before_is_told(monkeypatch, few):
    monkeypatch.setattr(distinct, "_FEW", few)
    with closing(Distinct()) as names:
        assert names.again([f"sku-{number}" for number in range(50)]) is None
        assert names.again(["a", "b", "sku-7", "c", "sku-8"]) == "sku-7"
        assert names.again(["d", "e", "d"]) == "d"


def test_memory_does_not_grow_with_the_names(monkeypatch):
    monkeypatch.setattr(distinct, "_FEW", 1000)
    with closing(Distinct()) as names:
        for number in range(2000):
            names.add(f"sku-{number}")
        tracemalloc.start()
        for number in range(2000, 30_000):
            names.add(f"sku-{number}")
        assert tracemalloc.get_traced_memory()[1] < 100_000
        tracemalloc.stop()
