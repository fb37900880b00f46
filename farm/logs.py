"""JSON logs, one object a line, with the job they are about."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime

_job: ContextVar[dict[str, str] | None] = ContextVar("the job at hand", default=None)
_CREDENTIALS = re.compile(r"(\w+://)[^/@\s]*@")


@contextmanager
def job_context(**fields: str) -> Iterator[None]:
    """Every log line inside carries `fields`."""
    token = _job.set({**(_job.get() or {}), **fields})
    try:
        yield
    finally:
        _job.reset(token)


class JsonFormatter(logging.Formatter):
    """JSON escapes control characters, so nobody's prompt can forge a line; credentials in URLs are struck out."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _CREDENTIALS.sub(r"\1***@", record.getMessage()),
            **(_job.get() or {}),
        }
        if record.exc_info:
            line["exception"] = _CREDENTIALS.sub(r"\1***@", self.formatException(record.exc_info))
        return json.dumps(line)


def set_up(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)  # its every task is a job of ours, logged as such
