"""A client, a worker's runner and a store with one good job, to which bad inputs are done."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from farm import keys
from farm.config import load_settings
from farm.ledger import JobRef, Ledger, connect
from farm.schemas import InpaintJob, JobResult
from farm.storage import ObjectStore
from farm.tenants import Tenants
from producer.client import Client
from worker.runner import Rendered, Renderer, RenderRequest, Runner

TENANT = "acme"


class Painter:
    """A renderer that paints red. What it is given is judged by others: it has no model to match it to."""

    device, checkpoint_sha256 = "cpu", "0" * 64

    def progress(self) -> int:
        return 0

    def estimate_seconds(self, request: RenderRequest) -> float:
        return 1.0

    def read_lora(self, data: bytes) -> bytes:
        return data

    read_embedding = read_ip_adapter = read_lora

    def render(self, request: RenderRequest) -> Rendered:
        request.on_step()
        return Rendered([Image.new("RGB", request.image.size, (255, 0, 0))] * request.job.num_images_per_prompt, {})


def saved(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


class Bench:
    """`inputs` is a prefix that the tenant may read; the farm's own store is `settings.store`."""

    def __init__(
        self, store: ObjectStore, renderer: Renderer, *, inputs: str, redis_url: str, root: str,
        tenants: Path | None = None, model_path: Path | None = None, **places: str,
    ):  # fmt: skip
        limits = {"max_image_bytes": 8_000_000, "max_lora_bytes": 40_000_000, "max_image_pixels": 4_000_000}
        self.settings = load_settings(
            redis_url=redis_url,
            store=root,
            tenants=tenants,
            model_path=model_path,
            lease_seconds=30,
            size_buckets=["64x64"],
            **limits,
        )
        self.store, self.inputs, self.places = store, inputs, {"inputs": f"{inputs}/", **places}
        self.client = Client(self.settings, store=store)
        self.tenants = Tenants.load(self.settings)
        self._runner = Runner(self.settings, store, Ledger(connect(redis_url)), renderer, self.tenants)
        self._names = (f"n{number:04d}" for number in itertools.count())
        noise = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
        self.photo = Image.fromarray(noise)
        mask = Image.new("L", (96, 64), 0)
        mask.paste(255, (40, 20, 80, 50))
        self.good = {"image": self.put(saved(self.photo), "photo.png"), "mask": self.put(saved(mask), "mask.png")}

    def put(self, data: bytes, name: str = "") -> str:
        """An object under the tenant's inputs, named anew or `name`."""
        uri = f"{self.inputs}/{name or next(self._names)}"
        self.store.put(uri, data, content_type="application/octet-stream", create_only=False)
        return uri

    def fields(self, **changes: Any) -> dict[str, Any]:
        """A good job's, with `changes`."""
        job = {"tenant": TENANT, "custom_id": next(self._names), "num_inference_steps": 1, "seed": 7}
        return {**job, **self.good, **changes}

    def run(self, refs: Sequence[JobRef]) -> None:
        self._runner.run(refs)

    def submit(self, fields: Mapping[str, Any]) -> JobRef:
        """Through the client, who raises what it knows to be wrong."""
        return self.client.submit(InpaintJob(**fields))._ref

    def smuggle(self, line: bytes, *, seal: bool = True) -> JobRef:
        """A spec that somebody stored without our client: it must be good enough for the worker, or be refused."""
        batch, job = keys.batch_id(TENANT, None, single=True), next(self._names)
        if seal and line.startswith(b"{") and line.endswith(b"}"):
            line = self.tenants.seal(line, tenant=TENANT, batch_id=batch)
        uri = keys.spec_shard(self.settings.store, TENANT, batch, keys.SINGLE)
        self.store.put(uri, line, content_type="application/x-ndjson", create_only=True)
        return JobRef(job, TENANT, batch, self.settings.model, keys.SINGLE, 0, len(line))

    def result(self, ref: JobRef) -> JobResult:
        uri = keys.result(self.settings.store, ref.tenant, ref.batch_id, ref.job_id, 0)
        return JobResult.from_json(self.store.get(uri, max_bytes=10**6).data)

    def outputs(self) -> set[str]:
        """All pictures that lie in the farm's own place."""
        return {info.uri for info in self.store.list(f"{self.settings.store}/outputs/")}

    def accepted(self) -> set[str]:
        return {info.uri for info in self.store.list(f"{self.settings.store}/specs/")}


def spec(fields: Mapping[str, Any]) -> bytes:
    """The fields as JSON by hand, whatever they are (NaN, lone surrogates)."""
    return json.dumps(fields, default=str).encode()
