"""Every object key and every Redis key of the farm, nowhere else.

Object keys hang under the farm's store URL (`FARM_STORE`), one folder a tenant, so that a policy can be one prefix:

    specs/<tenant>/<batch>/single.ndjson          a job that was submitted alone, create-once
    specs/<tenant>/<batch>/<shard>.ndjson         up to 1,000 jobs of a batch, create-once
    specs/<tenant>/<batch>/batch.json             seals a batch: all its shards are there
    specs/<tenant>/<batch>/canceled.json          nothing more of it is to be rendered
    specs/<tenant>/<batch>/retry-<n>.ndjson       which of its jobs were given another generation
    results/<tenant>/<batch>/<job>.<gen>.json     how each job ended, create-once
    summaries/<tenant>/<batch>.json               how a batch ended, in numbers
    summaries/<tenant>/<batch>/<retries>-<shard>.ndjson   its results, up to 1,000 an object, create-once
    states/<tenant>/<batch>/<job>.<gen>.…         a preempted job's state, until its result is written
    dead/<tenant>/<batch>/<job>.<gen>.json        a job that was given up, and why
    webhooks/<tenant>/<batch>/<job>.<gen>.json    a webhook still to be sent; batch.<retries>.json: its batch's
    outputs/<tenant>/<batch>/<custom_id>…         the pictures, unless the job names a prefix of its own
    models/<model>.json                           what a client needs to judge jobs for it; the one that is no tenant's
"""

from __future__ import annotations

import secrets
from hashlib import sha256

from farm.names import check_name
from farm.schemas import InpaintJob

SINGLE = -1  # the shard of a job that was submitted alone

# Redis. `farm.ledger` says what each is for.
DUE = "farm:due"
READY = "farm:ready:"  # + model + ":" + tenant; by itself the set of models that have any
TENANTS = "farm:tenants:"  # + model
HINTED = "farm:hinted:"  # + model
HELD = "farm:held:"  # + batch: ready jobs of a paused batch
LIVE = "farm:live"  # hash: tenant/model → jobs that are indexed, have not ended and are not held
QUEUED = "farm:queued"  # hash: tenant → jobs that were accepted and have not ended
OPEN = "farm:open"  # sorted set: tenant/batch/model → its place in line; shards left to index, not paused
RUNNING = "farm:running:"  # + model: set of jobs in a worker's hands
FINISHED = "farm:finished:"  # + model: jobs that ended, a counter
PACE = "farm:pace:"  # + model: seconds that workers spent on them
WEIGHTS = "farm:weights"  # hash: tenant → weight of its fair share
SEQUENCE = "farm:sequence"  # a counter: which of two ready jobs came first
ROLLING = "farm:rolling"  # set: tenant/batch/retries of batches that are over and not rolled
WAKE = "farm:wake"  # list: the dispatcher sleeps on it
COLLECTED = "farm:collected"  # when the store was last gone through for orphaned outputs
EPOCH = "farm:epoch"  # what is gone after Redis lost everything
WALK = "farm:walk:"  # + a random name: a walk over the store that goes on
LEADER = "farm:dispatcher"  # the dispatcher that exports the queue's metrics


def batch_row(batch: str) -> str:
    return f"farm:batch:{batch}"


def job_row(job_id: str) -> str:
    return f"farm:job:{job_id}"


def batch_id(tenant: str, idempotency_key: str | None, *, single: bool) -> str:
    """The same key of the same tenant is the same batch; without a key every submission is its own.

    Keys of single jobs and of batches do not meet: each kind is told by its own object, so none can be both.
    """
    if idempotency_key is None:
        return secrets.token_hex(16)
    kind = "single" if single else "batch"
    return sha256(f"{kind}\0{tenant}\0{idempotency_key}".encode()).hexdigest()[:32]


def job_id(tenant: str, batch: str, custom_id: str) -> str:
    return sha256(f"{tenant}\0{batch}\0{custom_id}".encode()).hexdigest()[:32]


def queue(model: str) -> str:
    """The Celery queue that the workers of one model consume."""
    return f"farm.{model}"


def seed(job: str) -> int:
    """The seed of a job that named none: from its id, so that a second attempt makes the same picture."""
    return int(job[:8], 16)


def specs(root: str) -> str:
    return f"{root.rstrip('/')}/specs/"


def batch_folder(root: str, tenant: str, batch: str) -> str:
    return f"{specs(root)}{tenant}/{batch}/"


def spec_shard(root: str, tenant: str, batch: str, shard: int) -> str:
    return batch_folder(root, tenant, batch) + ("single.ndjson" if shard == SINGLE else f"{shard:05d}.ndjson")


def batch_footer(root: str, tenant: str, batch: str) -> str:
    return f"{batch_folder(root, tenant, batch)}batch.json"


def batch_canceled(root: str, tenant: str, batch: str) -> str:
    return f"{batch_folder(root, tenant, batch)}canceled.json"


def retry(root: str, tenant: str, batch: str, number: int) -> str:
    return f"{batch_folder(root, tenant, batch)}retry-{number:05d}.ndjson"


def card(root: str, model: str) -> str:
    """What is published of a model, for clients."""
    return f"{root.rstrip('/')}/models/{check_name('model', model)}.json"


def summary(root: str, tenant: str, batch: str) -> str:
    return f"{root.rstrip('/')}/summaries/{tenant}/{batch}.json"


def rolled(root: str, tenant: str, batch: str, retries: int, shard: int) -> str:
    """The results of the jobs of a spec shard, as they were after so many retries."""
    return f"{rolled_prefix(root, tenant, batch, retries)}{shard:05d}.ndjson"


def rolled_prefix(root: str, tenant: str, batch: str, retries: int) -> str:
    return f"{root.rstrip('/')}/summaries/{tenant}/{batch}/{retries:05d}-"


def results(root: str, tenant: str, batch: str) -> str:
    return f"{root.rstrip('/')}/results/{tenant}/{batch}/"


def state(root: str, tenant: str, batch: str, job: str, generation: int) -> str:
    return f"{states(root)}{tenant}/{batch}/{job}.{generation}.safetensors"


def graveyard(root: str) -> str:
    return f"{root.rstrip('/')}/dead/"


def dead(root: str, tenant: str, batch: str, job: str, generation: int) -> str:
    return f"{graveyard(root)}{tenant}/{batch}/{job}.{generation}.json"


def webhooks(root: str) -> str:
    return f"{root.rstrip('/')}/webhooks/"


def webhook(root: str, tenant: str, batch: str, name: str) -> str:
    return f"{webhooks(root)}{tenant}/{batch}/{name}.json"


def states(root: str) -> str:
    return f"{root.rstrip('/')}/states/"


def result(root: str, tenant: str, batch: str, job: str, generation: int) -> str:
    return f"{root.rstrip('/')}/results/{tenant}/{batch}/{job}.{generation}.json"


def output(root: str, job: InpaintJob, batch: str, index: int, generation: int = 0) -> str:
    """Where picture `index` of a job goes: predictable, so that a second attempt meets the first one's bytes.

    A retry of a job that has ended writes beside what its earlier generations may have left.
    """
    prefix = job.output or f"{root.rstrip('/')}/outputs/{job.tenant}/{batch}/"
    suffix = (f"-{index}" if index else "") + (f".g{generation}" if generation else "")
    if job.if_exists == "version":
        suffix += f".{job_id(job.tenant, batch, job.custom_id)[:12]}"
    return f"{prefix}{job.custom_id}{suffix}.{'jpg' if job.output_format == 'jpeg' else job.output_format}"
