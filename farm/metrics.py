"""Every metric of the farm, declared once. Label values known in advance exist at zero from the start."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()
_counter = partial(Counter, registry=REGISTRY)
_gauge = partial(Gauge, registry=REGISTRY)
_histogram = partial(Histogram, registry=REGISTRY)

STAGES = (
    "queue_wait", "fetch", "decode", "lora", "vae_encode", "denoise", "vae_decode", "encode", "store", "total",
)  # fmt: skip
VRAM_KINDS = ("allocated", "reserved", "peak", "total")
WORKER_STATES = ("starting", "ready", "draining")
GPU_FAULTS = ("memory", "sticky", "drift")
LORA_TIERS = ("resident", "ram", "disk")
WEBHOOK_OUTCOMES = ("delivered", "failed", "refused", "gone", "given_up")
GROWTH = ("true", "false")
SWAP_TIERS = (*LORA_TIERS, "remote")

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_SWAP_SECONDS = (0.0001, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5)

jobs = _counter("farm_jobs_total", "Jobs ended by this worker, by how.", ("model", "status", "error"))
images = _counter("farm_images_total", "Pictures written.", ("model",))
denoise_steps = _counter("farm_denoise_steps_total", "Denoising steps made, one a row.")
job_seconds = _histogram("farm_job_seconds", "Seconds a job spent in each stage.", ("model", "stage"), buckets=_SECONDS)
lora_swaps = _counter("farm_lora_swaps_total", "LoRA sets put on, one a job, by where they came from.", ("tier",))
lora_swap_seconds = _histogram(
    "farm_lora_swap_seconds", "Seconds to put a LoRA set on the model.", buckets=_SWAP_SECONDS
)
lora_resident = _gauge("farm_lora_resident", "LoRAs held ready in memory.")
lora_load_seconds = _histogram(
    "farm_lora_load_seconds",
    "Seconds to bring a weights file to where jobs take it from, by the tier it came from; 0 where it was there.",
    ("tier",),
    buckets=_SECONDS,
)
lora_evictions = _counter("farm_lora_evictions_total", "Weights files dropped for room, by tier.", ("tier",))
lora_eviction_seconds = _histogram(
    "farm_lora_eviction_seconds", "Seconds to drop a weights file for room.", ("tier",), buckets=_SWAP_SECONDS
)
lora_bytes = _gauge(
    "farm_lora_bytes",
    "Weights files kept: on the device (resident), in ram, on disk (which the machine's workers may share).",
    ("tier",),
)
engine_batch_size = _histogram(
    "farm_engine_batch_size",
    "Rows of a UNet forward: two a picture under guidance.",
    buckets=(1, 2, 4, 6, 8, 12, 16, 24, 32, 64),
)
engine_busy_seconds = _counter(
    "farm_engine_busy_seconds_total", "Seconds inside model forwards (text encoder, VAE, UNet)."
)
vram_bytes = _gauge("farm_vram_bytes", "Device memory; on a CPU the process's resident memory.", ("device", "kind"))
worker_state = _gauge("farm_worker_state", "1 for the state the worker is in.", ("state",))
gpu_faults = _counter(
    "farm_gpu_faults_total",
    "What the device did not survive: memory (a job ran out of it), sticky (its context is lost), drift (of weights).",
    ("kind",),
)

dropped_messages = _counter("farm_dropped_messages_total", "Messages in the queue that were no hints.")

# The dispatcher's. Of several dispatchers only the one that leads fills the queue's gauges.

queue_jobs = _gauge(
    "farm_queue_jobs",
    "Jobs by state: unindexed (accepted, waiting in the store), ready, hinted, running.",
    ("model", "state"),
)
queue_oldest_seconds = _gauge(
    "farm_queue_oldest_seconds", "Age of the oldest job that is ready to be hinted.", ("model",)
)
backlog_gpu_seconds = _gauge(
    "farm_backlog_gpu_seconds",
    "Work left: jobs that have not ended, times the seconds a worker spends on one. growth: whether workers are added "
    "for it; not for jobs of a priority below FARM_GROWTH_PRIORITY.",
    ("model", "growth"),
)
hints = _counter("farm_hinted_jobs_total", "Jobs hinted to the workers.", ("model",))
redeliveries = _counter(
    "farm_redeliveries_total", "Jobs made ready again: a lease ended, a retry was due, a hint came to nothing."
)
dead_jobs = _counter("farm_dead_jobs_total", "Jobs given up although nothing is known to be wrong with them.")
orphans = _counter("farm_orphans_total", "Outputs deleted that no result names, their jobs being over.")
webhooks = _counter(
    "farm_webhooks_total",
    "Tries to send webhooks by what came of them: delivered; failed; refused (the farm may not call "
    "it); gone (the receiver answered 410); given_up (after a day of tries).",
    ("outcome",),
)
reconciled = _counter("farm_reconciled_total", "Batches and single jobs brought back into the index from the store.")


def declare(model: str, device: str) -> None:
    """Make the series of one worker exist at zero, so that rates work from the first event."""
    for status in ("succeeded", "failed", "canceled", "expired"):
        jobs.labels(model, status, "")
    images.labels(model)
    for stage in STAGES:
        job_seconds.labels(model, stage)
    for tier in SWAP_TIERS:
        lora_swaps.labels(tier)
        lora_load_seconds.labels(tier)
    for tier in LORA_TIERS:
        lora_evictions.labels(tier)
        lora_eviction_seconds.labels(tier)
        lora_bytes.labels(tier)
    for kind in VRAM_KINDS:
        vram_bytes.labels(device, kind)
    for kind in GPU_FAULTS:
        gpu_faults.labels(kind)
    set_worker_state("starting")


def declare_queue(model: str) -> None:
    """The same for a dispatcher's series."""
    hints.labels(model)
    for outcome in WEBHOOK_OUTCOMES:
        webhooks.labels(outcome)
    for state in ("unindexed", "ready", "hinted", "running"):
        queue_jobs.labels(model, state)
    queue_oldest_seconds.labels(model)
    for growth in GROWTH:
        backlog_gpu_seconds.labels(model, growth)


def set_worker_state(state: str) -> None:
    for name in WORKER_STATES:
        worker_state.labels(name).set(name == state)
