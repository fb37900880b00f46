"""A memory tier held to a model through random histories."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from worker.bank.tier import Tier

KEYS = st.sampled_from("abcdef")
BUDGET = 10


def size_of(key: str) -> int:
    return 1 + "abcdef".index(key)  # 1 to 6; all together 21


class TierMachine(RuleBasedStateMachine):
    """What is held is there; beyond the budget there is nothing that is not held, but what came just now."""

    def __init__(self) -> None:
        super().__init__()
        self.tier: Tier[str] = Tier("ram", BUDGET)
        self.held: Counter[str] = Counter()
        self.just_put: str | None = None

    @rule(key=KEYS)
    def put(self, key: str) -> None:
        assert self.tier.put(key, key.upper(), size_of(key), ahead=False)
        self.just_put = key

    @rule(key=KEYS)
    def put_ahead(self, key: str) -> None:
        there, before = key in self.tier, self.tier.keys()
        room = self.tier.has_room(size_of(key))
        assert self.tier.put(key, key.upper(), size_of(key), ahead=True) == (there or room)
        if there or room:
            self.just_put = key
        else:
            assert self.tier.keys() == before

    @rule(key=KEYS)
    def hold(self, key: str) -> None:
        value = self.tier.hold(key)
        assert value in (None, key.upper())
        if value is not None:
            self.held[key] += 1

    @rule(key=KEYS)
    def put_and_hold(self, key: str) -> None:
        assert self.tier.put_and_hold(key, key.upper(), size_of(key)) == key.upper()
        self.held[key] += 1

    @rule(key=KEYS)
    def find(self, key: str) -> None:
        assert (self.tier.find(key, ahead=False) is not None) == (key in self.tier)

    @rule(key=KEYS)
    def release(self, key: str) -> None:
        if self.held[key]:
            self.tier.release(key)
            self.held[key] -= 1
            self.just_put = None

    @rule()
    def clear(self) -> None:
        self.tier.clear()
        assert self.tier.keys() == {key for key, count in self.held.items() if count}

    @invariant()
    def holds(self) -> None:
        keys, held = self.tier.keys(), {key for key, count in self.held.items() if count}
        assert held <= keys
        assert self.tier.bytes == sum(map(size_of, keys))
        assert self.tier.bytes <= BUDGET or keys == held | (keys & {self.just_put})


TestTier = TierMachine.TestCase
TestTier.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_what_is_awaited_outlives_what_is_not():
    tier: Tier[str] = Tier("ram", 3)
    tier.put("awaited", "A", 1, ahead=True)
    tier.put("used", "U", 1, ahead=False)
    tier.put("large", "L", 2, ahead=False)
    assert tier.keys() == {"awaited", "large"}


def test_waiting_does_not_last_for_ever(monkeypatch):
    tier: Tier[str] = Tier("ram", 2)
    tier.put("awaited", "A", 2, ahead=True)
    assert not tier.put("next", "N", 2, ahead=True)
    later = time.monotonic() + 61
    monkeypatch.setattr("worker.bank.tier.time.monotonic", lambda: later)
    assert tier.put("next", "N", 2, ahead=True) and tier.keys() == {"next"}


def test_what_is_larger_than_the_budget_is_kept_only_while_it_is_held():
    tier: Tier[str] = Tier("ram", 2)
    assert not tier.put("large", "L", 3, ahead=False)
    tier.put_and_hold("large", "L", 3)
    assert tier.bytes == 3
    tier.release("large")
    assert tier.bytes == 0
