"""The store in memory keeps the contract of the real ones: the same tests, as far as they are its own."""

import inspect

import pytest

from producer.testing.store import MemoryStore
from tests.conftest import StoreAt
from tests.integration import test_storage_contract as contract

CASES = {
    name: test
    for name, test in vars(contract).items()
    if name.startswith("test_") and list(inspect.signature(test).parameters) == ["at"]
}


@pytest.fixture
def at() -> StoreAt:
    return StoreAt(MemoryStore(), "s3://bucket/place", "memory")


def test_there_are_tests_to_pass():
    assert len(CASES) >= 12


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_contract(name, at):
    CASES[name](at)
