"""What is done to a fleet, and when: a plan that follows from a seed, and the hand that carries it out.

Each kind of fault comes once in every round, in an order that the seed shuffles; so even a short run meets all of them.
Faults may overlap. What was done is noted with its time.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.faults.fleet import Child, Fleet
from tests.faults.proxy import SLOW_DOWN, Link


@dataclass(frozen=True)
class Fault:
    """One fault of a plan. `at`: seconds after the start; `seconds`: how long it lasts; `victim` picks a process."""

    kind: str
    at: float
    seconds: float
    victim: int


@dataclass(frozen=True)
class Kind:
    """How a kind of fault begins and ends, and between which bounds its length lies (in seconds)."""

    begin: Callable[[Fleet, Fault], object]
    end: Callable[[Fleet, Fault], object] = lambda fleet, fault: None
    length: tuple[float, float] = (0.0, 0.0)
    on: str = ""  # of two faults of one thing the later one ends the earlier
    loses_index: bool = False  # from its beginning to its end


def _send(group: str, number: int) -> Callable[[Fleet, Fault], None]:
    def send(fleet: Fleet, fault: Fault) -> None:
        children: list[Child] = getattr(fleet, group)
        if children:
            children[fault.victim % len(children)].signal(number)

    return send


def _paused(group: str, length: tuple[float, float]) -> Kind:
    return Kind(_send(group, signal.SIGSTOP), _send(group, signal.SIGCONT), length)


def _linked(proxy: str, *, up: Link | None = None, down: Link | None = None, length: tuple[float, float]) -> Kind:
    def begin(fleet: Fleet, fault: Fault) -> None:
        there = getattr(fleet, proxy)
        there.up, there.down = up or Link(), down or Link()

    return Kind(begin, lambda fleet, fault: getattr(fleet, proxy).heal(), length, on=proxy)


def _flush(fleet: Fleet, fault: Fault) -> None:
    with fleet.redis.client() as client:
        client.flushall()


def kinds(lease_seconds: float) -> dict[str, Kind]:
    """Every kind of fault, by name. A pause of a worker lasts longer than the lease."""
    pause = (lease_seconds * 1.3, lease_seconds * 2)
    short = (1.0, 2.5)
    return {
        "worker kill -9": Kind(_send("workers", signal.SIGKILL)),
        "worker SIGTERM": Kind(_send("workers", signal.SIGTERM)),
        "worker SIGSTOP": _paused("workers", pause),
        "dispatcher kill -9": Kind(_send("dispatchers", signal.SIGKILL)),
        "dispatcher SIGTERM": Kind(_send("dispatchers", signal.SIGTERM)),
        "dispatcher SIGSTOP": _paused("dispatchers", pause),
        "producer kill -9": Kind(_send("producers", signal.SIGKILL)),
        "redis kill -9": Kind(
            lambda fleet, _: fleet.redis.kill(), lambda fleet, _: fleet.redis.start(), short, "redis"
        ),
        "redis FLUSHALL": Kind(_flush, on="redis", loses_index=True),
        "redis cut": Kind(lambda fleet, _: fleet.redis_proxy.cut()),
        "redis half-open": _linked("redis_proxy", down=Link(swallow=True), length=(0.5, 1.5)),
        "redis slow": _linked("redis_proxy", up=Link(delay=0.25), down=Link(delay=0.25, cut=0.05), length=short),
        "s3 errors": _linked("s3_proxy", up=Link(answer=SLOW_DOWN, answer_chance=0.5), length=short),
        "s3 slow": _linked("s3_proxy", up=Link(delay=0.1), down=Link(delay=0.2, bandwidth=20_000), length=short),
        "s3 answers lost": _linked("s3_proxy", down=Link(cut=0.1), length=short),
    }


def plan(seed: int, seconds: float, every: float, kinds: dict[str, Kind]) -> list[Fault]:
    """Faults for `seconds`, one about `every` seconds, in shuffled rounds of all kinds."""
    chance = random.Random(seed)
    faults: list[Fault] = []
    round_: list[str] = []
    at = every
    while at < seconds:
        if not round_:
            round_ = chance.sample(sorted(kinds), len(kinds))
        kind = round_.pop()
        faults.append(Fault(kind, at, chance.uniform(*kinds[kind].length), chance.randrange(1 << 16)))
        at += chance.uniform(0.5, 1.5) * every
    return faults


@dataclass
class Done:
    """A fault that was carried out; times by the wall clock."""

    kind: str
    begin: float
    end: float


@dataclass
class Nemesis:
    """Carries a plan out. Call `tick` often, from the thread that owns the fleet."""

    fleet: Fleet
    kinds: dict[str, Kind]
    faults: list[Fault]
    done: list[Done] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _under_way: list[tuple[float, Fault, Done]] = field(default_factory=list)

    def tick(self) -> None:
        now = time.monotonic() - self._began
        self._end(now)
        while self.faults and self.faults[0].at <= now:
            fault = self.faults.pop(0)
            self._end(now, on=self.kinds[fault.kind].on)
            done = Done(fault.kind, time.time(), time.time())
            self.kinds[fault.kind].begin(self.fleet, fault)
            done.end = time.time()
            self.done.append(done)
            self._under_way.append((now + fault.seconds, fault, done))

    def finish(self) -> None:
        """End all that is under way and mend what could stay broken."""
        self.faults.clear()
        self._end(float("inf"))

    def _end(self, now: float, *, on: str = "") -> None:
        for entry in list(self._under_way):
            until, fault, done = entry
            if until <= now or (on and self.kinds[fault.kind].on == on):
                self._under_way.remove(entry)
                self.kinds[fault.kind].end(self.fleet, fault)
                done.end = time.time()

    def resets(self) -> tuple[tuple[float, float], ...]:
        """When the index was lost, in whole or in part."""
        return tuple((done.begin, done.end) for done in self.done if self.kinds[done.kind].loses_index)
