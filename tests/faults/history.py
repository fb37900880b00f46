"""What happened in a run, and whether it may have: the invariants of durable jobs, checked from three sides.

What clients were told (`accepted`), what lies in the object store afterwards (`specs`, `results`, `outputs`) and what
the workers saw (`claims`, `wins`). The store is read and the events are read by `evidence`; here is only judgement, on
plain data, so that made-up histories can prove that every violation is found.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise

from farm.schemas import InpaintJob, JobResult
from farm.states import JobState


class Invariant(StrEnum):
    KEPT = "what a client was told is accepted lies in the store, byte for byte"
    ENDED = "every accepted spec ends with exactly one result"
    SUCCEEDED = "no fault makes a good job fail"
    SPECIFIED = "no result without a spec"
    WON_ONCE = "one winning commit a generation"
    RISING = "attempts only rise within an index epoch"
    HASHED = "every listed sha256 matches its object"
    OWN = "nothing crosses a tenant"
    ROLLED = "a batch's rolled results are its jobs' results, each once"
    COLLECTED = "no output that no result names"
    DRAINED = "after the drain queue, unacked and index are empty"


@dataclass(frozen=True)
class Violation:
    invariant: Invariant
    about: str  # a job's id, an object's name or a queue's
    what: str

    def __str__(self) -> str:
        return f"{self.invariant.name}: {self.about}: {self.what}"


@dataclass(frozen=True)
class Accepted:
    """A job that a client was told is accepted, with the line of its spec."""

    job_id: str
    spec: bytes


@dataclass(frozen=True)
class Spec:
    """A line of a shard in the store; `tenant` and `batch_id` are those of the object's name."""

    job_id: str
    tenant: str
    batch_id: str
    line: bytes


@dataclass(frozen=True)
class Ended:
    """A result in the store; the fields beside it are those of the object's name."""

    job_id: str
    tenant: str
    batch_id: str
    generation: int
    result: JobResult


@dataclass(frozen=True)
class Rolled:
    """An object of rolled results, line by line."""

    uri: str
    results: tuple[JobResult, ...]


@dataclass(frozen=True)
class Picture:
    """An output in the store: what its metadata say, what its bytes hash to, whose photo is in its pixels."""

    uri: str
    sha256: str
    job_id: str
    generation: int
    shows: str  # tenant


@dataclass(frozen=True)
class Claimed:
    """A worker was given a job, some time between `begin` and `end` (seconds, one clock for all)."""

    job_id: str
    attempt: int
    begin: float
    end: float


@dataclass(frozen=True)
class Won:
    """A worker's create-once write succeeded, as the worker saw it."""

    uri: str
    at: float


@dataclass(frozen=True)
class History:
    accepted: tuple[Accepted, ...] = ()
    specs: tuple[Spec, ...] = ()
    results: tuple[Ended, ...] = ()
    rolled: tuple[Rolled, ...] = ()
    outputs: tuple[Picture, ...] = ()
    claims: tuple[Claimed, ...] = ()
    wins: tuple[Won, ...] = ()
    given_back: frozenset[str] = frozenset()  # jobs of workers that drained: such an attempt is not charged
    resets: tuple[tuple[float, float], ...] = ()  # when the index was lost, in whole or in part: (begin, end)
    left: dict[str, int] = field(default_factory=dict)  # what Redis still holds after the drain, by name


def violations(history: History) -> list[Violation]:
    """All that is wrong, in the order of the invariants."""
    found: list[Violation] = []
    for check in (_kept, _ended, _succeeded, _won_once, _rising, _hashed, _own, _rolled, _collected, _drained):
        found += check(history)
    return found


def _kept(history: History) -> Iterator[Violation]:
    stored = {spec.job_id: spec.line for spec in history.specs}
    for job in history.accepted:
        line = stored.get(job.job_id)
        if line is None:
            yield Violation(Invariant.KEPT, job.job_id, "accepted, and its spec is not there")
        elif line.rstrip(b"\n") != job.spec.rstrip(b"\n"):
            yield Violation(Invariant.KEPT, job.job_id, f"accepted as {job.spec!r:.200}, kept as {line!r:.200}")
    for job_id, count in Counter(spec.job_id for spec in history.specs).items():
        if count > 1:
            yield Violation(Invariant.KEPT, job_id, f"its spec is there {count} times")


def _ended(history: History) -> Iterator[Violation]:
    results = Counter(ended.job_id for ended in history.results)
    due = {spec.job_id for spec in history.specs} | {job.job_id for job in history.accepted}
    for job_id in sorted(due):
        if results[job_id] != 1:
            yield Violation(Invariant.ENDED, job_id, f"it has {results[job_id]} results")
    for job_id in sorted(set(results) - {spec.job_id for spec in history.specs}):
        yield Violation(Invariant.SPECIFIED, job_id, "it has a result and no spec")


def _succeeded(history: History) -> Iterator[Violation]:
    for ended in history.results:
        if ended.result.status is not JobState.SUCCEEDED:
            error = ended.result.error
            yield Violation(Invariant.SUCCEEDED, ended.job_id, f"{ended.result.status}: {error.code if error else '?'}")


def _won_once(history: History) -> Iterator[Violation]:
    for uri, count in Counter(win.uri for win in history.wins).items():
        if count > 1:
            yield Violation(Invariant.WON_ONCE, uri, f"{count} create-once writes of it succeeded")
    generations = Counter((ended.job_id, ended.generation) for ended in history.results)
    for (job_id, generation), count in generations.items():
        if count > 1:
            yield Violation(Invariant.WON_ONCE, job_id, f"{count} results in generation {generation}")


def _rising(history: History) -> Iterator[Violation]:
    """Attempts are told apart only where one claim surely came before the other, and the index was whole meanwhile.

    A job that was given back uncharged is claimed under the same number again; one that has ended is forgotten by the
    index, so that a late hint's claim of it begins anew, and finds the result.
    """
    ends = {ended.job_id: ended.result.finished_at.timestamp() for ended in history.results}
    by_job = defaultdict(list)
    for claim in history.claims:
        by_job[claim.job_id].append(claim)
    for job_id, claims in by_job.items():
        claims.sort(key=lambda claim: claim.begin)
        claims = [claim for claim in claims if claim.end <= ends.get(job_id, math.inf)]
        for first, second in pairwise(claims):
            if first.end > second.begin or any(a <= second.end and b >= first.begin for a, b in history.resets):
                continue
            least = first.attempt + (job_id not in history.given_back)
            if second.attempt < least:
                yield Violation(Invariant.RISING, job_id, f"attempt {first.attempt}, then {second.attempt}")


def _hashed(history: History) -> Iterator[Violation]:
    there = {picture.uri: picture for picture in history.outputs}
    for ended in history.results:
        for output in ended.result.outputs:
            picture = there.get(output.uri)
            if picture is None:
                yield Violation(Invariant.HASHED, ended.job_id, f"{output.uri} is not there")
            elif picture.sha256 != output.sha256:
                yield Violation(
                    Invariant.HASHED, ended.job_id, f"{output.uri} is {picture.sha256}, not {output.sha256}"
                )


def _own(history: History) -> Iterator[Violation]:
    specs = {spec.job_id: InpaintJob.from_json(spec.line) for spec in history.specs}
    there = {picture.uri: picture for picture in history.outputs}
    for spec in history.specs:
        if specs[spec.job_id].tenant != spec.tenant:
            yield Violation(
                Invariant.OWN, spec.job_id, f"{specs[spec.job_id].tenant}'s spec among those of {spec.tenant}"
            )
    for ended in history.results:
        result, job = ended.result, specs.get(ended.job_id)
        if job is None:
            continue  # no spec: said already
        named = (ended.job_id, ended.tenant, ended.batch_id, ended.generation)
        if (result.job_id, result.tenant, result.batch_id, result.generation) != named:
            yield Violation(Invariant.OWN, ended.job_id, f"its result is that of {result.tenant}'s job {result.job_id}")
        if (job.tenant, job.custom_id, job.image) != (result.tenant, result.custom_id, result.image):
            yield Violation(Invariant.OWN, ended.job_id, f"its result tells of {result.tenant}'s {result.custom_id}")
        for picture in (there[output.uri] for output in result.outputs if output.uri in there):
            if (picture.job_id, picture.generation) != (ended.job_id, ended.generation):
                yield Violation(Invariant.OWN, ended.job_id, f"{picture.uri} was written for job {picture.job_id}")
            if picture.shows != job.tenant:
                yield Violation(Invariant.OWN, ended.job_id, f"{picture.uri} shows a photo of {picture.shows!r}")


def _rolled(history: History) -> Iterator[Violation]:
    results = {(ended.job_id, ended.generation): ended.result for ended in history.results}
    for rolled in history.rolled:
        names = Counter((result.job_id, result.generation) for result in rolled.results)
        for result in rolled.results:
            name = (result.job_id, result.generation)
            if names[name] > 1 or results.get(name) != result:
                yield Violation(Invariant.ROLLED, rolled.uri, f"a result of job {result.job_id} that is not its own")


def _collected(history: History) -> Iterator[Violation]:
    named = {output.uri for ended in history.results for output in ended.result.outputs}
    for picture in history.outputs:
        if picture.uri not in named:
            yield Violation(Invariant.COLLECTED, picture.uri, f"an output of job {picture.job_id} that no result names")


def _drained(history: History) -> Iterator[Violation]:
    for name, size in history.left.items():
        if size:
            yield Violation(Invariant.DRAINED, name, f"{size} left")
