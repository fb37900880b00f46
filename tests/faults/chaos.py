"""A whole run: a fleet at work, a nemesis over it, then rest, then judgement. `make chaos SECONDS=600 SEED=…`."""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from tests.faults.evidence import accepted_jobs, left_in_redis, read_history, unacked
from tests.faults.fleet import Fleet, Programs, shown_tenant
from tests.faults.history import History, Invariant, Violation, violations
from tests.faults.nemesis import Done, Nemesis, kinds, plan
from tests.faults.plain_celery import waiting
from tests.servers.s3 import S3Server, shared_radosgw, stop_shared

log = logging.getLogger(__name__)

LEASE_SECONDS = 3.0
TENANTS = ("anna", "bert")
FARM = {
    "FARM_LEASE_SECONDS": str(LEASE_SECONDS),
    "FARM_CONCURRENCY": "4",
    # What the nemesis does is no job's fault: a job that is given up in a run is one too many.
    "FARM_MAX_ATTEMPTS": "1000",
    "FARM_MAX_CRASHES": "1000",
    "FARM_S3_READ_TIMEOUT": "5",
    # Again and again, and without grace: what it must not touch is what every result names.
    "FARM_COLLECT_SECONDS": "3",
    "FARM_ORPHAN_GRACE_SECONDS": "0",
    "NOOP_SECONDS": "0.005-0.2",
}
PLAIN = Programs(("-m", "tests.faults.plain_celery", "worker"), (), ("-m", "tests.faults.plain_celery", "producer"))


@dataclass(frozen=True)
class Plain:
    """How plain Celery fared. `late`: not done when the test had waited enough, but Redis still knew of them."""

    accepted: int
    late: int
    lost: int


@dataclass(frozen=True)
class Report:
    seed: int
    seconds: float  # of faults
    drain_seconds: float  # from the last fault's end to the last result
    history: History
    violations: list[Violation]
    done: list[Done]
    stale_hints: int  # of jobs that have ended, left unacknowledged by workers that were killed

    @property
    def lost(self) -> int:
        """Accepted jobs without a result, or that failed."""
        bad = {Invariant.KEPT, Invariant.ENDED, Invariant.SUCCEEDED}
        return len({violation.about for violation in self.violations if violation.invariant in bad})

    @property
    def doubled(self) -> int:
        """Jobs and objects that were committed more than once, or differ from what was committed."""
        bad = {Invariant.WON_ONCE, Invariant.HASHED, Invariant.OWN}
        return len({violation.about for violation in self.violations if violation.invariant in bad})

    def recoveries(self) -> dict[str, list[float]]:
        """By kind of fault: of each job that was begun and had not ended when one came, seconds until its result."""
        begun: dict[str, float] = {}
        for claim in self.history.claims:
            begun[claim.job_id] = min(claim.begin, begun.get(claim.job_id, claim.begin))
        ended = {one.job_id: one.result.finished_at.timestamp() for one in self.history.results}
        spans = [(begin, ended[job]) for job, begin in begun.items() if job in ended]
        found: dict[str, list[float]] = {done.kind: [] for done in self.done}
        for done in self.done:
            found[done.kind] += [end - done.begin for begin, end in spans if begin < done.begin < end]
        return found

    def table(self) -> str:
        attempts = [ended.result.attempt for ended in self.history.results]
        again = sum(attempt > 1 for attempt in attempts)
        lines = [
            f"seed {self.seed}: {self.seconds:g} s of faults, drained {self.drain_seconds:.1f} s after the last",
            "",
            f"{'accepted':<12}{len(self.history.accepted):>8}",
            f"{'committed':<12}{len(self.history.results):>8}",
            f"{'lost':<12}{self.lost:>8}",
            f"{'doubled':<12}{self.doubled:>8}",
            f"{'attempts':<12}{len(self.history.claims):>8}   {again} jobs ended in a later one than their first",
            f"{'stale hints':<12}{self.stale_hints:>8}",
            "",
            f"{'fault':<20}{'times':>6}{'jobs in hand':>14}{'their ends, median':>20}{'worst':>9}",
        ]
        times = Counter(done.kind for done in self.done)
        for kind, waits in sorted(self.recoveries().items()):
            middle, worst = (f"{statistics.median(waits):.2f} s", f"{max(waits):.2f} s") if waits else ("-", "-")
            lines.append(f"{kind:<20}{times[kind]:>6}{len(waits):>14}{middle:>20}{worst:>9}")
        return "\n".join([*lines, *(f"VIOLATED {violation}" for violation in self.violations[:50])])


def run(
    folder: Path,
    s3: S3Server,
    bucket: str,
    *,
    seed: int,
    seconds: float,
    every: float,
    rate: float,
    drain: float,
    environment: Mapping[str, str] | None = None,
) -> Report:
    """Run the farm under the plan of `seed`; `rate` jobs a second a tenant; up to `drain` seconds to come to rest.

    `environment`: further FARM_* settings.
    """
    told = {**FARM, **(environment or {})}
    with Fleet(folder, s3, bucket, environment=told, tenants=TENANTS, rate=rate, seed=seed) as fleet:
        nemesis = under_faults(fleet, seed, seconds, every)
        rested = time.monotonic()
        fleet.stop_producing(60)
        expected = len(list(accepted_jobs(folder)))
        drain_seconds = come_to_rest(fleet, expected, drain) - rested
        with fleet.redis.client() as client:
            left, stale = left_in_redis(client), unacked(client)[1]
        history = read_history(folder, fleet.store, fleet.root, left=left, resets=nemesis.resets(), shows=shown_tenant)
    return Report(seed, seconds, drain_seconds, history, violations(history), nemesis.done, stale)


def run_plain(
    folder: Path, s3: S3Server, bucket: str, *, seed: int, seconds: float, every: float, rate: float
) -> Plain:
    """The same for plain Celery; without any fault where `seconds` is 0."""
    with Fleet(folder, s3, bucket, programs=PLAIN, dispatchers=0, tenants=TENANTS, rate=rate, seed=seed) as fleet:
        under_faults(fleet, seed, seconds, every)
        fleet.stop_producing(60)
        accepted = {job.job_id for job in accepted_jobs(folder)}

        def missing() -> set[str]:
            return accepted - {info.uri.rsplit("/", 1)[1] for info in fleet.store.list(f"{fleet.root}/done/")}

        with suppress(TimeoutError):
            fleet.wait(lambda: not missing(), 7, "end of all jobs")
        with fleet.redis.client() as client:
            late = waiting(client)  # read first: a job that ends meanwhile is neither
        return Plain(len(accepted), late=len(missing() & late), lost=len(missing() - late))


def under_faults(fleet: Fleet, seed: int, seconds: float, every: float) -> Nemesis:
    """The plan carried out from the first accepted jobs on; all faults have ended when it returns."""
    fleet.wait(lambda: len(list(accepted_jobs(fleet.folder))) > 10, 60, "accepted jobs")
    there = kinds(LEASE_SECONDS)
    nemesis = Nemesis(fleet, there, plan(seed, seconds, every, there))
    end = time.monotonic() + seconds
    told = 0
    while time.monotonic() < end:
        nemesis.tick()
        for done in nemesis.done[told:]:
            log.info("%s", done.kind)
        told = len(nemesis.done)
        fleet.tick()
        time.sleep(0.02)
    nemesis.finish()
    with (fleet.folder / "nemesis.ndjson").open("w") as out:
        for done in nemesis.done:
            out.write(json.dumps({"seed": seed, "kind": done.kind, "begin": done.begin, "end": done.end}) + "\n")
    return nemesis


def come_to_rest(fleet: Fleet, expected: int, seconds: float) -> float:
    """Wait until there are as many results as accepted jobs and Redis is empty, but no longer than `seconds`.

    When it was so, on the monotonic clock. What is missing after that is for the history to tell.
    """
    end = time.monotonic() + seconds
    with fleet.redis.client() as client:
        while time.monotonic() < end:
            fleet.tick()
            empty = not any(left_in_redis(client).values())
            if empty and sum(1 for _ in fleet.store.list(f"{fleet.root}/results/")) >= expected:
                break
            time.sleep(0.3)
    return time.monotonic()


@click.command()
@click.option("--seconds", type=float, default=600, show_default=True, help="How long faults are made.")
@click.option("--seed", type=int, default=None, help="The plan's seed; none: the time.")
@click.option("--every", type=float, default=2.0, show_default=True, help="Seconds between two faults, about.")
@click.option("--rate", type=float, default=4.0, show_default=True, help="Jobs a second of each of two tenants.")
def main(seconds: float, seed: int | None, every: float, rate: float) -> None:
    """Run the farm over a real Redis and a real S3 server under seeded faults, and print what came of it."""
    logging.basicConfig(level="INFO", format="%(asctime)s %(message)s", force=True)
    logging.getLogger("botocore").setLevel("WARNING")
    folder = Path(tempfile.mkdtemp(prefix="farm-chaos-"))
    (folder / "run").mkdir()
    (folder / "s3").mkdir()
    seed = int(time.time()) if seed is None else seed
    print(f"seed {seed}, logs in {folder}", flush=True)
    drain = max(120.0, seconds)  # what a fleet under faults left undone may take as long again
    try:
        s3 = shared_radosgw(folder / "s3", os.getpid())
        s3.client.create_bucket(Bucket="chaos")
        report = run(folder / "run", s3, "chaos", seed=seed, seconds=seconds, every=every, rate=rate, drain=drain)
    finally:
        stop_shared(folder / "s3")
    print(report.table())
    sys.exit(bool(report.violations))


if __name__ == "__main__":
    main()
