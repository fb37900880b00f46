"""Every object key and every Redis key of the farm, nowhere else.

Object keys hang under the farm's store URL (`FARM_STORE`), one folder a tenant, so that a policy can be one prefix:

    specs/<tenant>/<batch>/<shard>.ndjson         what was accepted, create-once
    results/<tenant>/<batch>/<job>.<gen>.json     how each job ended, create-once
    outputs/<tenant>/<batch>/<custom_id>…         the pictures, unless the job names a prefix of its own
"""

from __future__ import annotations

import secrets
from hashlib import sha256

from farm.schemas import InpaintJob

DUE = "farm:due"  # sorted set: job id → when somebody must look at it next (Redis time, seconds)


def job_row(job_id: str) -> str:
    return f"farm:job:{job_id}"


def batch_id(tenant: str, idempotency_key: str | None) -> str:
    """The same key of the same tenant is the same batch; without a key every submission is its own."""
    if idempotency_key is None:
        return secrets.token_hex(16)
    return sha256(f"{tenant}\0{idempotency_key}".encode()).hexdigest()[:32]


def job_id(tenant: str, batch: str, custom_id: str) -> str:
    return sha256(f"{tenant}\0{batch}\0{custom_id}".encode()).hexdigest()[:32]


def queue(model: str) -> str:
    """The Celery queue that the workers of one model consume."""
    return f"farm.{model}"


def seed(job: str) -> int:
    """The seed of a job that named none: from its id, so that a second attempt makes the same picture."""
    return int(job[:8], 16)


def spec_shard(root: str, tenant: str, batch: str, shard: int) -> str:
    return f"{root.rstrip('/')}/specs/{tenant}/{batch}/{shard:05d}.ndjson"


def result(root: str, tenant: str, batch: str, job: str, generation: int) -> str:
    return f"{root.rstrip('/')}/results/{tenant}/{batch}/{job}.{generation}.json"


def output(root: str, job: InpaintJob, batch: str, index: int) -> str:
    """Where picture `index` of a job goes: predictable, so that a second attempt meets the first one's bytes."""
    prefix = job.output or f"{root.rstrip('/')}/outputs/{job.tenant}/{batch}/"
    suffix = f"-{index}" if index else ""
    return f"{prefix}{job.custom_id}{suffix}.{'jpg' if job.output_format == 'jpeg' else job.output_format}"
