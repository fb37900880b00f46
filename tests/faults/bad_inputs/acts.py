"""What the client alone can know to be wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from farm.schemas import InpaintJob
from tests.faults.bad_inputs.bench import TENANT, Bench
from tests.faults.bad_inputs.row import Act


def _again(bench: Bench) -> None:
    """The same idempotency key, another job."""
    fields = bench.fields()
    bench.client.submit(InpaintJob(**fields), idempotency_key=f"key of {fields['custom_id']}")
    changed = InpaintJob(**{**fields, "strength": 0.5})
    bench.client.submit(changed, idempotency_key=f"key of {fields['custom_id']}")


def _batch_again(bench: Bench) -> None:
    """The same idempotency key, other jobs."""
    fields = bench.fields()
    for strength in (1.0, 0.5):
        jobs = [InpaintJob(**{**fields, "strength": strength})]
        bench.client.submit_batch(jobs, tenant=TENANT, idempotency_key=f"key of {fields['custom_id']}")


def _batch(*changes: dict[str, object]) -> object:
    def do(bench: Bench) -> None:
        bench.client.submit_batch([InpaintJob(**bench.fields(**change)) for change in changes], tenant=TENANT)

    return do


_PAST = datetime.now(UTC) - timedelta(seconds=1)

ACTS: tuple[Act, ...] = (
    Act("same idempotency key, another job", "IdempotencyConflict", _again),
    Act("same idempotency key, other jobs of a batch", "IdempotencyConflict", _batch_again),
    Act(
        "half a surrogate pair in the prompt",
        "InvalidPrompt",
        lambda bench: bench.submit(bench.fields(prompt="\ud800")),
    ),
    Act("deadline in the past", "DeadlineInPast", lambda bench: bench.submit(bench.fields(deadline=_PAST))),
    Act("deadline in the past, in a batch", "DeadlineInPast", _batch({}, {"deadline": _PAST})),
    Act("a custom_id twice in a batch", "InvalidParameter", _batch({"custom_id": "a"}, {"custom_id": "a"})),
    Act("a job of another tenant in a batch", "InvalidParameter", _batch({}, {"tenant": "rival"})),
)
