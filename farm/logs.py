"""JSON logs, one object a line, with the job they are about and without anybody's secret.

time level logger message    of every line; exception where there is one
worker                       the process, by its FARM_WORKER_NAME
job batch tenant attempt     what the line is about, where it is about a job or a batch
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from types import TracebackType
from urllib.parse import unquote, urlsplit

_job: ContextVar[dict[str, str] | None] = ContextVar("the job at hand", default=None)
_process: dict[str, str] = {}
# Up to the last "@" of the word: a password may hold "/" and "@". And what signs a presigned address or a request.
_USER_INFO = re.compile(r"(\w+://)\S*@")
_SIGNATURE = re.compile(
    r"""((?:x-amz-(?:signature|credential|security-token)|[?&](?:x-amz-[\w-]+|signature|awsaccesskeyid|token))
    ['"]?\s*[=:]\s*b?['"]?|\bsignature=)[^&\s"',]+""",
    re.IGNORECASE | re.VERBOSE,
)
_SHORTEST_SECRET = 6  # striking out "a" everywhere would hide the log, not the secret
_LOUD = ("boto3", "botocore", "urllib3", "s3transfer")  # at DEBUG they print signed requests and session tokens


@contextmanager
def job_context(**fields: object) -> Iterator[None]:
    """Every log line inside carries `fields`: job, batch, tenant, attempt."""
    token = _job.set({**(_job.get() or {}), **{name: str(value) for name, value in fields.items()}})
    try:
        yield
    finally:
        _job.reset(token)


class JsonFormatter(logging.Formatter):
    """JSON escapes control characters, so nobody's prompt can forge a line; secrets are struck out."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": struck(record.getMessage()),
            **{name: struck(value) for name, value in {**_process, **(_job.get() or {})}.items()},
        }
        if record.exc_info:
            line["exception"] = struck(self.formatException(record.exc_info))
        return json.dumps(line)


def struck(text: str) -> str:
    """`text` without credentials: those of addresses, signatures, and this process' own, wherever they stand."""
    for secret in _own_secrets():
        text = text.replace(secret, "***")
    return _SIGNATURE.sub(r"\1***", _USER_INFO.sub(r"\1***@", text))


def _own_secrets() -> Iterator[str]:
    """What the environment gave this process to prove who it is: other libraries may put it into their messages."""
    found = {os.environ.get(name, "") for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")}
    with suppress(ValueError):
        password = urlsplit(os.environ.get("FARM_REDIS_URL", "")).password or ""
        found |= {password, unquote(password)}
    return (secret for secret in found if len(secret) >= _SHORTEST_SECRET)


def name_process(worker: str) -> None:
    """Every log line of this process carries its name."""
    _process["worker"] = worker


def set_up(level: str) -> None:
    """Log to stderr; what Python itself would print there, warnings and what nobody caught, is a line, too."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    logging.getLogger("celery.app.trace").setLevel(logging.WARNING)  # its every task is a job of ours, logged as such
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.INFO)


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if error is not None and not issubclass(kind, (KeyboardInterrupt, SystemExit)):
        logging.getLogger(__name__).critical("nobody caught this", exc_info=(kind, error, trace))


def _uncaught_in_thread(gone: threading.ExceptHookArgs) -> None:
    _uncaught(gone.exc_type, gone.exc_value, gone.exc_traceback)
