"""The ledger as a state machine: random histories on a real Redis, against a model of a few lines."""

from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from farm import keys
from farm.ledger import Batches, Beat, JobRef, Ledger, Outcome, Window, connect
from farm.schemas import BatchFooter
from farm.states import JobState

MODEL, FOREVER = "m", 10_000.0
SINGLES = [JobRef(f"single-{n}", f"tenant-{n % 2}", f"alone-{n}", MODEL, keys.SINGLE, 0, 9) for n in range(3)]
SHARDS = [[JobRef(f"job-{s}-{n}", "tenant-0", "batch", MODEL, s, 9 * n, 9) for n in range(2)] for s in range(2)]
ALL = {ref.job_id: ref for ref in [*SINGLES, *SHARDS[0], *SHARDS[1]]}
FOOTER = BatchFooter(tenant="tenant-0", batch_id="batch", jobs=4, shards=2, model=MODEL)
some_jobs = st.lists(st.sampled_from(sorted(ALL)), min_size=1, max_size=4, unique=True)
one_job = st.sampled_from(sorted(ALL))


@dataclass
class Job:
    where: str = "ready"  # ready | hinted | held | running | waiting (for its retry) | ended (a mark for its owner)
    owner: str = ""
    expired: bool = False  # its lease, its retry's delay, or its hint
    attempt: int = 0
    crashes: int = 0
    remade: bool = False

    def requeue(self):
        self.where, self.owner, self.expired = "ready", "", False


class LedgerMachine(RuleBasedStateMachine):
    url = ""

    @initialize()
    def begin(self):
        self.redis = connect(self.url)
        self.redis.flushall()
        self.ledger, self.window, self.batches = Ledger(self.redis), Window(self.redis), Batches(self.redis)
        self.jobs: dict[str, Job] = {}
        self.owners: dict[str, set[str]] = {name: set() for name in ALL}
        self.next_shard, self.paused, self.opened, self.canceled = 0, False, False, False
        self.counted: list[str] = []
        self.open_batch()

    def open_batch(self):
        self.batches.open(FOOTER, look_again_in=FOREVER)
        self.next_shard, self.paused, self.canceled, self.counted = 0, False, False, []

    def teardown(self):
        if hasattr(self, "redis"):
            self.redis.close()

    # What producers and the dispatcher do

    @rule(ref=st.sampled_from(SINGLES))
    def enqueue(self, ref):
        assert self.ledger.enqueue([ref]) == (ref.job_id not in self.jobs)
        self.jobs.setdefault(ref.job_id, Job())

    @rule(shard=st.integers(0, 1), over=st.integers(0, 2))
    def index(self, shard, over):
        """The first `over` jobs of the shard have ended, as the store says."""
        ended, left = SHARDS[shard][:over], SHARDS[shard][over:]
        counts = {"succeeded": over} if over else {}
        assert self.batches.index_shard("tenant-0", "batch", shard, left, ended=counts) == (shard == self.next_shard)
        if shard == self.next_shard:
            self.next_shard += 1
            self.counted += [ref.job_id for ref in ended]
            for ref in left:
                self.jobs.setdefault(ref.job_id, Job())

    @rule(limit=st.integers(1, 4))
    def take_ready(self, limit):
        hinted = sum(job.where == "hinted" for job in self.jobs.values())
        refs = self.window.take_ready(MODEL, window=5, limit=limit, quantum=2, look_again_in=FOREVER)
        assert all(ref == ALL[ref.job_id] and self.jobs[ref.job_id].where == "ready" for ref in refs)
        assert not (self.paused and any(ref.batch_id == "batch" for ref in refs))
        for ref in refs:
            self.jobs[ref.job_id].where = "hinted"
        ready = sum(job.where == "ready" and not self.kept_back(name) for name, job in self.jobs.items())
        assert len(refs) == min(limit, 5 - hinted) or ready == 0
        for name, job in self.jobs.items():
            if (
                job.where == "ready"
                and self.kept_back(name)
                and self.redis.zscore(f"{keys.HELD}batch", name) is not None
            ):
                job.where = "held"

    def kept_back(self, name):
        return self.paused and ALL[name].shard >= 0

    @rule(name=one_job)
    def time_passes(self, name):
        """The lease, the retry's delay or the hint's patience of one job is over."""
        if self.redis.zscore(keys.DUE, name) is not None:
            self.redis.zadd(keys.DUE, {name: 1})
            self.jobs[name].expired = True

    @rule()
    def take_due(self):
        due = [job for job in self.jobs.values() if job.expired and job.where in ("running", "waiting", "hinted")]
        assert self.window.take_due(limit=100, look_again_in=FOREVER).jobs == len(due)
        for job in due:
            job.crashes += job.where == "running"
            job.requeue()

    @rule(paused=st.booleans())
    def pause(self, paused):
        assert self.batches.pause("tenant-0", "batch", paused=paused)
        self.paused = paused
        for job in self.jobs.values():
            if not paused and job.where == "held":
                job.where = "ready"

    @precondition(lambda self: not self.canceled)
    @rule()
    def cancel(self):
        self.batches.cancel("batch")
        self.canceled = True

    # What workers do

    @rule(names=some_jobs)
    def claim(self, names):
        claims = self.ledger.claim([ALL[name] for name in names], lease_seconds=FOREVER)
        for name, claim in zip(names, claims, strict=True):
            job = self.jobs.get(name)
            if job is None:
                job = self.jobs[name] = Job(remade=True)
            elif job.where == "ended" or (job.where == "running" and not job.expired):
                assert claim.outcome is Outcome.BUSY
                continue
            job.crashes += job.where == "running"
            canceled = self.canceled and ALL[name].shard >= 0
            assert claim.outcome is (Outcome.CANCELED if canceled else Outcome.CLAIMED)
            assert claim.owner not in self.owners[name]
            self.owners[name].add(claim.owner)
            job.where, job.owner, job.expired, job.attempt = "running", claim.owner, False, job.attempt + 1
            assert (claim.attempt, claim.crashes) == (job.attempt, job.crashes)

    @rule(name=one_job, data=st.data())
    def beat(self, name, data):
        owner = data.draw(st.sampled_from(sorted(self.owners[name]) or ["nobody"]))
        answer = self.ledger.beat([ALL[name]], owner, lease_seconds=FOREVER)[0]
        job = self.jobs.get(name)
        if job is None:
            job = self.jobs[name] = Job("running", owner, attempt=1, remade=True)
        if job.where != "running" or job.owner != owner:
            assert answer is Beat.LOST
        else:
            job.expired = False
            assert answer is (Beat.CANCELED if self.canceled and ALL[name].shard >= 0 else Beat.HELD)

    @rule(name=one_job, charged=st.booleans(), delay=st.sampled_from([0.0, FOREVER]), data=st.data())
    def release(self, name, charged, delay, data):
        owner = data.draw(st.sampled_from(sorted(self.owners[name]) or ["nobody"]))
        job = self.jobs.get(name)
        own = job is not None and job.where == "running" and job.owner == owner
        assert self.ledger.release(ALL[name], owner, delay_seconds=delay, charged=charged) == own
        if own:
            job.requeue()
            job.attempt -= not charged
            job.where = "waiting" if delay else "ready"

    @rule(names=some_jobs)
    def give_back(self, names):
        self.ledger.give_back([ALL[name] for name in names])
        for name in names:
            if name in self.jobs and self.jobs[name].where == "hinted":
                self.jobs[name].requeue()

    @rule(name=one_job, by_owner=st.booleans())
    def finish(self, name, by_owner):
        job = self.jobs.get(name)
        owner = job.owner if job is not None and by_owner else ""
        self.ledger.finish([(ALL[name], JobState.SUCCEEDED, 1.0)], owner=owner)
        if job is None:
            return
        if ALL[name].shard >= 0 and not job.remade and job.where != "ended":
            self.counted.append(name)
        if job.where == "running" and not owner:
            job.where, job.owner = "ended", ""
        else:
            del self.jobs[name]

    @rule()
    def lose_everything(self):
        self.redis.flushall()
        self.jobs = {}
        self.open_batch()

    # What holds at any time

    @invariant()
    def the_index_is_where_the_model_says(self):
        if not hasattr(self, "jobs"):
            return
        redis, names = self.redis, {}
        for name, job in self.jobs.items():
            names.setdefault(job.where, set()).add(name)
            row = redis.hgetall(keys.job_row(name))
            state = {"running": "running", "ended": "ended"}.get(job.where, "queued")
            assert (row["state"], row.get("owner", "")) == (state, job.owner)
            assert (int(row["attempt"]), int(row["crashes"])) == (job.attempt, job.crashes)
        ready = {
            name for tenant in ("tenant-0", "tenant-1") for name in redis.zrange(f"{keys.READY}{MODEL}:{tenant}", 0, -1)
        }
        assert ready == names.get("ready", set())
        assert set(redis.zrange(keys.HINTED + MODEL, 0, -1)) == names.get("hinted", set())
        assert set(redis.zrange(f"{keys.HELD}batch", 0, -1)) == names.get("held", set())
        assert redis.smembers(keys.RUNNING + MODEL) == names.get("running", set())
        due = {name for name in redis.zrange(keys.DUE, 0, -1) if not name.startswith("batch:")}
        assert due == names.get("hinted", set()) | names.get("running", set()) | names.get("waiting", set())
        record = self.batches.record("tenant-0", "batch")
        assert record.counts.get("succeeded", 0) == len(self.counted)
        alive = [name for name, job in self.jobs.items() if job.where != "ended"]
        assert record.live == sum(ALL[name].shard >= 0 for name in alive)
        live = self.batches.live()
        assert sum(live.values()) == len(alive) - len(names.get("held", set()))


@pytest.mark.timeout(600)
def test_random_histories(redis_url):
    LedgerMachine.url = redis_url
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )  # fmt: skip
