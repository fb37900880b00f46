"""What is sent, and its signature: Standard Webhooks 1.0 (standardwebhooks.com), symmetric scheme `v1`.

    webhook-id         the event's name, the same in every try
    webhook-timestamp  of this try, Unix seconds
    webhook-signature  "v1," + base64 of HMAC-SHA256(secret, id "." timestamp "." body), one for each secret of the
                       tenant, with spaces between: a receiver takes any, so secrets can be changed without a gap

    {"type": "job.succeeded", "timestamp": "2026-11-01T09:30:00Z", "data": {"job_id": …, "custom_id": …, "status": …}}

Types are job.succeeded, job.failed, job.canceled, job.expired and batch.ended.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pydantic import SecretBytes

from farm.errors import Misconfigured
from farm.schemas import BatchSummary, JobResult

MAX_BODY: Final = 20_000  # bytes, as the specification advises
_PREFIX = b"whsec_"
_MIN_SECRET = 24


class Event(NamedTuple):
    id: str  # no "." in it, or the signed content could be read in two ways
    body: bytes


def job_event(result: JobResult, result_uri: str) -> Event:
    """The event of a job that ended. Outputs and metadata that do not fit are left out: `result` has all."""
    data: dict[str, Any] = {
        **result.model_dump(
            mode="json",
            include={"job_id", "tenant", "batch_id", "custom_id", "generation", "status", "model", "needs_review"},
        ),
        "error": result.error and {"code": result.error.code, "message": result.error.message[:500]},
        "outputs": [{"uri": output.uri, "sha256": output.sha256} for output in result.outputs],
        "metadata": result.metadata,
        "result": result_uri,
    }
    kind, at = f"job.{result.status.value}", result.finished_at.isoformat()
    for member in ("metadata", "outputs"):
        if len(_body(kind, at, data)) <= MAX_BODY:
            break
        data[member] = None
    return Event(f"job_{result.job_id}_{result.generation}", _body(kind, at, data))


def batch_event(summary: BatchSummary, at: str) -> Event:
    """The event of a batch all of whose jobs have ended; after a retry of some it is another event."""
    data = summary.model_dump(mode="json")
    return Event(f"batch_{summary.batch_id}_{summary.retries}", _body("batch.ended", at, data))


def _body(kind: str, at: str, data: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "timestamp": at, "data": data}, separators=(",", ":")).encode()


def headers(event: Event, *, timestamp: int, secrets: Sequence[SecretBytes]) -> dict[str, str]:
    """The headers of one try at sending `event`. Raises Misconfigured without a secret."""
    if not secrets:
        raise Misconfigured("Nothing signs webhooks; set webhook_secrets in FARM_TENANTS, or FARM_WEBHOOK_SECRET_FILE.")
    return {
        "content-type": "application/json",
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signature(event, timestamp=timestamp, secret=secret) for secret in secrets),
    }


def signature(event: Event, *, timestamp: int, secret: SecretBytes) -> str:
    content = b".".join((event.id.encode(), str(timestamp).encode(), event.body))
    return "v1," + base64.b64encode(hmac.digest(secret.get_secret_value(), content, "sha256")).decode()


def secret_of(text: bytes) -> SecretBytes:
    """The key of a secret as it is handed out: `whsec_` and base64, or the bytes as they are. Raises Misconfigured."""
    key = text.strip()
    if key.startswith(_PREFIX):
        try:
            key = base64.b64decode(key.removeprefix(_PREFIX), validate=True)
        except binascii.Error:
            raise Misconfigured("A webhook secret is no base64 after its whsec_; write it anew.") from None
    if len(key) < _MIN_SECRET:
        raise Misconfigured(f"A webhook secret has {len(key)} bytes; make one of at least {_MIN_SECRET} random bytes.")
    return SecretBytes(key)
