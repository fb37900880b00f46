"""Results, read where the store has them and written as NDJSON: `results.ndjson`, or the shape of an OpenAI batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, BinaryIO

from farm import keys
from farm.errors import InputNotFound
from farm.ledger import JobRef
from farm.schemas import JobResult, dump_line
from farm.shards import MAX_RESULT_BYTES, Shelf
from farm.states import JobState

READERS = 16  # results on their way at once


def read_result(shelf: Shelf, ref: JobRef) -> JobResult | None:
    """The result of a job's generation, None if there is none yet."""
    uri = keys.result(shelf.root, ref.tenant, ref.batch_id, ref.job_id, ref.generation)
    try:
        return JobResult.from_json(shelf.store.get(uri, max_bytes=MAX_RESULT_BYTES).data)
    except InputNotFound:
        return None


def read_results(shelf: Shelf, refs: Sequence[JobRef], pool: Executor) -> list[JobResult | None]:
    """`read_result` of each, many at once."""
    return [None if line is None else JobResult.from_json(line) for line in shelf.result_lines(refs, pool)]


# Formats


def openai_line(result: JobResult) -> bytes:
    """A line of an OpenAI batch's output file: `response` for what succeeded, `error` for what did not.

    https://platform.openai.com/docs/api-reference/batch/request-output
    """
    good = result.status is JobState.SUCCEEDED
    body = {
        "created": int(result.finished_at.timestamp()),
        "data": [{"url": output.uri, "seed": output.seed, "sha256": output.sha256} for output in result.outputs],
    }
    error = result.error
    line: dict[str, Any] = {
        "id": f"batch_req_{result.job_id}",
        "custom_id": result.custom_id,
        "response": {"status_code": 200, "request_id": result.job_id, "body": body} if good else None,
        "error": None if good else {"code": error.code if error else "", "message": error.message if error else ""},
    }
    return json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


FORMATS: dict[str, Callable[[JobResult], bytes]] = {"farm": dump_line, "openai": openai_line}


def write_results(file: BinaryIO, results: Iterable[JobResult], form: str = "farm") -> int:
    """Write a line a result, in the format `form` (a name in FORMATS); how many."""
    line_of, count = FORMATS[form], 0
    for result in results:
        file.write(line_of(result))
        count += 1
    return count


def read_lines(path: Path) -> Iterable[JobResult]:
    """The results of a `results.ndjson`, one at a time; not the half line that a killed process leaves at its end."""
    with path.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                yield JobResult.from_json(line)
