"""Every setting of the farm: typed, read from FARM_* environment variables, documented where it is declared."""

from __future__ import annotations

import os
import re
import socket
from ipaddress import ip_network
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict, SettingsError

from farm.errors import Misconfigured
from farm.names import check_redis_url
from farm.storage import ObjectStore, S3Settings, open_store
from farm.webhooks.address import check_pattern


class Settings(BaseSettings):
    """`Settings()` reads the environment; keyword arguments win over it."""

    model_config = SettingsConfigDict(env_prefix="FARM_", frozen=True, extra="ignore")

    # Where things are
    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0", pattern="^rediss?://|^unix://", repr=False
    )  # the index and the Celery broker; it may hold a password
    allow_plain_redis: bool = False  # redis:// to another machine, whose password and jobs anyone between can read
    store: str = ""  # the farm's own store: s3://bucket/prefix or file:///folder
    local_roots: tuple[str, ...] = ()  # further folders that a local store may read inputs from
    tenants: Path | None = None  # JSON: each tenant's keys, weight, quota and places; none: see farm/tenants.py

    # S3, for stores that are not AWS (credentials come from the usual AWS_* variables or the instance's role)
    s3_endpoint: str | None = None
    s3_region: str | None = None
    s3_path_style: bool = False
    # botocore adds checksums to every PUT by default, which some stores refuse over https: "when_required" is the cure.
    s3_request_checksum_calculation: Literal["when_supported", "when_required"] = "when_supported"
    s3_connect_timeout: float = Field(default=5.0, gt=0)  # seconds
    s3_read_timeout: float = Field(default=60.0, gt=0)  # seconds
    s3_max_attempts: int = Field(default=1, ge=1)  # of one request, inside botocore; the farm itself retries jobs

    # The queue
    tenant_quota: int = Field(default=0, ge=0)  # jobs a tenant may have queued where no tenants file says; 0: no limit
    redis_full_at: float = Field(default=0.9, gt=0, le=1)  # of Redis' maxmemory; beyond it nothing new is accepted

    # The dispatcher
    reconcile_seconds: float = Field(default=3600.0, gt=0)  # the store is walked for jobs the index has lost
    # A hint that no worker answers is given again after so long, then after twice that, up to 16 times. Shorter finds a
    # lost message sooner; longer sends fewer hints to workers that are all busy.
    hint_look_seconds: float = Field(default=30.0, gt=0)
    # A batch without a word from its client or its jobs is looked at in the store so often, then ever more rarely.
    batch_look_seconds: float = Field(default=20.0, gt=0)
    # The store is gone through so often for outputs that no result names: a worker died after writing them, and the job
    # failed or was canceled since. They are deleted once the job has been over for the grace period; 0: never.
    collect_seconds: float = Field(default=24 * 3600.0, ge=0)
    orphan_grace_seconds: float = Field(default=3600.0, ge=0)  # longer than a stopped worker may take to wake up
    # Rows of one tenant and model in Redis, 0.5 kB each; further jobs wait in the store, a shard of 1,000 at a time.
    max_indexed: int = Field(default=4000, ge=1)

    # Work of a priority below this adds no workers: it is done by those that are there. 0: all work adds workers.
    growth_priority: int = Field(default=1, ge=0, le=101)

    # What it costs
    gpu_hour_price: float = Field(default=0.0, ge=0)  # of one device for an hour, in your currency; 0: not known

    # Webhooks, sent by the dispatcher (farm/webhooks). Where FARM_TENANTS is set it says hosts and secrets instead.
    webhook_hosts: tuple[str, ...] = ()  # "name", "*.name" or "name:port" that may be called; none: no webhooks
    webhook_secret_file: Path | None = None  # what signs them: whsec_…, or at least 32 random bytes
    webhook_networks: tuple[str, ...] = ()  # private networks (CIDR) that a host may be in all the same
    webhook_allow_http: bool = False  # http:// as well; what is sent can be read on the way
    webhook_seconds: float = Field(default=5.0, gt=0)  # between two looks for what is to be sent
    webhook_timeout: float = Field(default=10.0, gt=0)  # seconds for one request, all together
    webhook_give_up_seconds: float = Field(default=86400.0, gt=0)  # after a job's end

    # Limits of what comes in
    max_image_bytes: int = 256 * 1024**2
    max_image_pixels: int = 100_000_000
    max_lora_bytes: int = 2 * 1024**3  # of one file

    # The worker
    model: str = "sd15-inpaint"  # the name this worker's checkpoint goes by; also its queue
    model_path: Path | None = None  # the checkpoint's folder in the diffusers layout
    backend: Literal["torch", "jax"] = "torch"  # jax: compiled, over all of JAX's devices (worker/engine_jax)
    device: str = "auto"  # auto | cpu | cuda | cuda:N; of torch's
    dtype: str = "auto"  # auto | float32 | bfloat16 | float16; auto is float16 on CUDA, float32 on a CPU
    # Bytes of a GPU's memory for this worker's tensors, weights, LoRAs and batches; 0: all there is. CUDA itself takes
    # some hundred MB beside them.
    vram_budget: int = Field(default=0, ge=0)
    # torch.compile's mode for steps whose rows share a LoRA set. The warm-up takes a minute and more longer for each
    # size and number of rows: give fewer size_buckets, and a pod more startupSeconds.
    compile: Literal["off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = "off"
    # Sizes "WIDTHxHEIGHT" in px, one of which a crop is resized to when the job names none (JSON list).
    size_buckets: tuple[str, ...] = ("512x512", "576x448", "448x576", "640x384", "384x640")
    # LoRAs (and embeddings, IP-Adapters) kept between jobs. What a job holds stays, even beyond these bytes.
    lora_device_bytes: int = Field(default=2 * 1024**3, ge=0)  # in device memory; without effect on a CPU
    lora_ram_bytes: int = Field(default=4 * 1024**3, ge=0)
    lora_disk_path: Path | None = None  # a folder that the machine's workers may share; none: nothing kept on disk
    lora_disk_bytes: int = Field(default=32 * 1024**3, ge=0)  # in that folder, by all workers together
    # Rows of one UNet forward, two a picture under guidance, that jobs may share; 0: as many as the warm-up finds good.
    max_batch_rows: int = Field(default=0, ge=0)
    # Jobs in hand at once: some render while others fetch and write. 0: twice as many as share a step, and four.
    concurrency: int = Field(default=0, ge=0)
    lease_seconds: float = Field(default=60.0, gt=0)  # a job is somebody else's when its worker is silent for so long
    # Decoding a picture, or reading back what was written, tells no progress; it keeps the job's lease for so long.
    stage_seconds: float = Field(default=300.0, gt=0)
    drain_seconds: float = Field(default=25.0, ge=0)  # after SIGTERM: jobs that fit are finished, others are saved
    max_attempts: int = Field(default=5, ge=1)  # of a job whose failures are transient
    max_crashes: int = Field(default=3, ge=1)  # workers a job may take down before it is given up
    stall_seconds: float = Field(default=120.0, gt=0)  # the process ends when the device does nothing for so long
    # Resident memory, bytes, beyond which a worker drains and ends, for whatever starts it again; 0: never.
    recycle_bytes: int = Field(default=0, ge=0)
    weight_check_swaps: int = Field(default=16, ge=0)  # LoRA swaps between two looks at the base weights; 0: never
    # The gate (worker/gate.py): a picture with a score above its limit is painted again with another seed, so often;
    # by default it is only marked, since a job that is submitted twice is to give the same picture twice.
    gate_retries: int = Field(default=0, ge=0, le=8)
    gate_blank: float = Field(default=0.98, gt=0)
    gate_unchanged: float = Field(default=0.98, gt=0)
    gate_seam: float = Field(default=12.0, gt=0)
    gate_colour_shift: float = Field(default=30.0, gt=0)
    metrics_port: int = Field(default=9090, ge=0, le=65535)  # /metrics /healthz /readyz; 0 takes any free port
    metrics_host: str = "0.0.0.0"
    worker_name: str = Field(default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    def open_store(self) -> ObjectStore:
        """The farm's store. Raises Misconfigured if none is set."""
        if not self.store:
            raise Misconfigured(
                "FARM_STORE is not set; give the farm's store, e.g. s3://bucket/farm or file:///folder."
            )
        s3 = S3Settings(
            endpoint_url=self.s3_endpoint,
            region=self.s3_region,
            path_style=self.s3_path_style,
            checksums=self.s3_request_checksum_calculation,
            connect_timeout=self.s3_connect_timeout,
            read_timeout=self.s3_read_timeout,
            max_attempts=self.s3_max_attempts,
        )
        return open_store(self.store, s3=s3, extra_roots=self.local_roots)

    def in_hand(self, sharing: int) -> int:
        """`concurrency`, or what is good where `sharing` jobs share a step."""
        return self.concurrency or 2 * sharing + 4

    def buckets(self) -> tuple[tuple[int, int], ...]:
        """`size_buckets` as (width, height)."""
        return tuple((int(w), int(h)) for w, h in (size.split("x") for size in self.size_buckets))

    @model_validator(mode="after")
    def _redis_out_of_sight(self) -> Self:
        check_redis_url(self.redis_url, allow_plain=self.allow_plain_redis)
        return self

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(pattern) for pattern in value)

    @field_validator("webhook_networks")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(str(ip_network(network)) for network in value)

    @field_validator("size_buckets")
    @classmethod
    def _buckets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for size in value:
            match = re.fullmatch(r"([0-9]{1,4})x([0-9]{1,4})", size)
            if not match or any(int(side) < 64 or int(side) % 8 for side in match.groups()):
                raise PydanticCustomError("size", "sizes are written 512x448, each side at least 64 and divisible by 8")
        if not value:
            raise PydanticCustomError("size", "at least one size is needed")
        return value


def load_settings(**overrides: object) -> Settings:
    """The settings, or Misconfigured with the variable's name."""
    try:
        return Settings(**overrides)  # type: ignore[arg-type]  # pydantic checks what the type cannot say
    except SettingsError as error:  # a list that is not JSON
        raise Misconfigured(f"{str(error)[:120]}; a list is written as JSON.") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "FARM_" + "_".join(str(part) for part in first["loc"][:1]).upper()
        raise Misconfigured(f"{name}: {first['msg'][0].lower() + first['msg'][1:]}.") from None
