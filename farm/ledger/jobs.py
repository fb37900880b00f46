"""`Ledger`: one job's way through the index, as producers and workers use it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from farm import keys
from farm.ledger import scripts
from farm.ledger.connection import mapped
from farm.ledger.records import Beat, Claim, JobRef, Outcome, new_owner
from farm.states import JobState

if TYPE_CHECKING:
    from redis import Redis

_SLICE = 1000  # rows a call: a script holds up everybody else for as long as it runs


class Ledger:
    """Raises QueueUnavailable (retryable) when Redis does not answer."""

    def __init__(self, client: Redis, *, worker: str = ""):
        """`worker`: whose claims these are, for whoever asks which workers hold jobs."""
        self._redis, self._worker = client, worker
        self._scripts = {
            name: client.register_script(scripts.PRELUDE + text)
            for name, text in (
                ("enqueue", scripts.ENQUEUE), ("claim", scripts.CLAIM), ("beat", scripts.BEAT),
                ("release", scripts.RELEASE), ("give_back", scripts.GIVE_BACK), ("finish", scripts.FINISH),
            )
        }  # fmt: skip

    def _run(self, script: str, *args: Any) -> Any:
        with mapped():
            return self._scripts[script](args=args)

    def ping(self) -> None:
        with mapped():
            self._redis.ping()

    def enqueue(self, refs: Sequence[JobRef], *, counted: bool = True) -> int:
        """Make rows for jobs that have none, ready to be hinted; how many were new.

        `counted` adds them to what their tenant has queued; those of an open batch are there already.
        """
        new = 0
        for begin in range(0, len(refs), _SLICE):
            new += int(self._run("enqueue", int(counted), *_rows(refs[begin : begin + _SLICE])))
        return new

    def claim(self, refs: Sequence[JobRef], *, lease_seconds: float) -> list[Claim]:
        """Take what is free of `refs`, one answer each; all that were taken have the same owner."""
        owner = new_owner(self._worker)
        answers = self._run("claim", owner, lease_seconds, *_rows(refs))
        return [
            Claim(Outcome(outcome), owner, int(attempt), int(crashes), float(waited), saved == "1")
            for outcome, attempt, crashes, waited, saved in answers
        ]

    def beat(self, refs: Sequence[JobRef], owner: str, *, lease_seconds: float) -> list[Beat]:
        """Renew leases, one answer each; who is not HELD must stop."""
        return [Beat(int(code)) for code in self._run("beat", owner, lease_seconds, *_rows(refs))]

    def release(
        self, ref: JobRef, owner: str, *, delay_seconds: float, charged: bool = True, saved: bool = False
    ) -> bool:
        """Give a job back, ready again in `delay_seconds`; False if it was no longer this owner's.

        A preemption is not `charged` as an attempt; with `saved` the next attempt finds the job's state in the store.
        """
        return bool(self._run("release", ref.job_id, owner, delay_seconds, int(charged), int(saved)))

    def give_back(self, refs: Iterable[JobRef]) -> None:
        """Jobs that were hinted and that nobody will claim from that hint: ready again at once."""
        if ids := [ref.job_id for ref in refs]:
            self._run("give_back", *ids)

    def finish(self, ended: Iterable[tuple[JobRef, JobState, float]], *, owner: str = "") -> None:
        """Forget jobs that have a result: (job, how it ended, seconds it took). Their batches count them.

        A job that another owner runs is forgotten too, and that owner's next beat refused.
        """
        flat = [
            part
            for ref, state, seconds in ended
            for part in (ref.job_id, ref.generation, state.value, round(seconds, 6), owner)
        ]
        if flat:
            self._run("finish", *flat)

    def state(self, job_id: str) -> JobState | None:
        """queued or running; None for a job that has ended, is not indexed yet, or was lost."""
        with mapped():
            value = cast("str | None", self._redis.hget(keys.job_row(job_id), "state"))
        return JobState(value) if value in (JobState.QUEUED, JobState.RUNNING) else None


def _rows(refs: Sequence[JobRef]) -> list[Any]:
    return [value for ref in refs for value in ref.row()]
