"""A row of the fault table, and where its proofs lie."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """`proofs`: tests as file::function, files under tests/."""

    fault: str
    expected: str
    proofs: tuple[str, ...]


# Files of proofs, under tests/.
CHAOS = "faults/test_chaos.py::test_the_farm_loses_and_doubles_nothing_under_it"
WORKERS, REDIS = "faults/test_fault_workers.py::", "faults/test_fault_redis.py::"
STORE, DISPATCHER = "faults/test_fault_store.py::", "faults/test_fault_dispatcher.py::"
RUNNER, ATTEMPTS, BATCHES, LEDGER = (
    "integration/test_runner.py::",
    "integration/test_attempts.py::",
    "integration/test_batches.py::",
    "integration/ledger/test_jobs.py::",
)
S3, RENDERER, WATCHDOG = (
    "unit/test_storage_s3.py::",
    "engine/test_renderer_faults.py::",
    "unit/test_watchdog.py::",
)
