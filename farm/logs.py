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
# Up to the last "@" of the word: a password may hold "/" and "@". And what signs a presigned address.
_USER_INFO = re.compile(r"(\w+://)\S*@")
_SIGNATURE = re.compile(r"([?&](?:x-amz-[\w-]+|signature|awsaccesskeyid|token)=)[^&\s\"']+", re.IGNORECASE)


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
            "message": _struck(record.getMessage()),
            **(_job.get() or {}),
        }
        if record.exc_info:
            line["exception"] = _struck(self.formatException(record.exc_info))
        return json.dumps(line)


def _struck(text: str) -> str:
    return _SIGNATURE.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


def set_up(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)  # its every task is a job of ours, logged as such
