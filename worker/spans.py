"""An attempt as a trace tells it: one span a stage, and with the job's result the span of the whole job."""

from __future__ import annotations

import time

from farm import tracing
from farm.states import JobState
from worker.verdicts import DEVICE_STAGES, Attempt


def tell(attempt: Attempt, state: JobState | None) -> None:
    """Tell of an attempt that is over: with `state`, or (None) given back.

    What the engine did within the render is told in its order and with its durations: jobs share the device, so that
    one's stages have no beginning of their own.
    """
    if not tracing.is_on():
        return
    shift, now = time.time() - time.monotonic(), time.monotonic()
    ref, claim = attempt.ref, attempt.claim
    about = {"farm.attempt": claim.attempt, "farm.state": state.value if state else "given back"}
    began, indexed = shift + attempt.claimed, shift + attempt.claimed - claim.waited_seconds
    if claim.attempt == 1:
        tracing.span("queue_wait", ref, indexed, began)
    whole = tracing.span("attempt", ref, began, shift + now, attributes=about, error=attempt.error)
    for name, begin, end in attempt.spans:
        made = tracing.span(name, ref, shift + begin, shift + end, below=whole)
        if name == "render":
            for stage in DEVICE_STAGES:
                seconds = attempt.timings.get(stage, 0.0)
                tracing.span(stage, ref, shift + begin, shift + begin + seconds, below=made)
                begin += seconds
    if attempt.committed:
        tracing.job(ref, indexed, shift + now, attributes=about, error=attempt.error)
