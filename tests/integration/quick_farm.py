"""The embedded farm with workers that paint a plain colour: all of it is real but the model."""

from __future__ import annotations

import json
import os
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

from producer.embedded import EmbeddedFarm
from producer.process import Process, free_port


class QuickFarm(EmbeddedFarm):
    """`environment` is what a client on this machine needs; inputs lie in `inputs`, below an allowed root."""

    def __init__(self, folder: Path, *, seconds: str = "0.001-0.002", workers: int = 1):
        self.inputs = folder / "inputs"
        self.inputs.mkdir(parents=True)
        extra = {
            "FARM_LOCAL_ROOTS": json.dumps([str(self.inputs)]),
            "FARM_SIZE_BUCKETS": '["64x64"]',
            "FARM_CONCURRENCY": "4",
            "NOOP_EVENTS": str(folder / "events"),
            "NOOP_SECONDS": seconds,
        }
        super().__init__(folder / "farm", model_path=folder / "no-model", environment=extra)
        self._more, self.others = workers - 1, list[Process]()

    def start_worker(self) -> None:
        self.worker = self._noop("worker", {})
        self.others = [
            self._noop(f"worker-{n}", {"FARM_METRICS_PORT": str(free_port())}) for n in range(1, self._more + 1)
        ]

    def _noop(self, name: str, own: dict[str, str]) -> Process:
        environment = {**self.client_environment(), **own, "FARM_WORKER_NAME": name}
        command = [sys.executable, "-m", "tests.faults.noop_worker"]
        return Process(command, self._folder / f"{name}.log", environment)

    def stop_worker(self) -> None:
        for worker in (self.worker, *self.others):
            if worker:
                worker.stop(grace=10)

    def client_environment(self) -> dict[str, str]:
        own = {name: value for name, value in os.environ.items() if not name.startswith("FARM_")}
        return {**own, **{key: value for key, value in self.environment.items() if key != "FARM_MODEL_PATH"}}

    def pictures(self) -> None:
        """A photo and a mask in `inputs`."""
        mask = Image.new("L", (48, 32), 0)
        mask.paste(255, (16, 8, 32, 24))
        for name, picture in {"photo": Image.new("RGB", mask.size, (200, 30, 30)), "mask": mask}.items():
            buffer = BytesIO()
            picture.save(buffer, "PNG")
            (self.inputs / f"{name}.png").write_bytes(buffer.getvalue())

    def manifest(self, rows: int, name: str = "catalogue.jsonl", **fields: object) -> Path:
        """Rows sku-0, sku-1, …, each of which paints the mask's part of the photo."""
        self.pictures()
        path = self.inputs / name
        with path.open("w") as file:
            for number in range(rows):
                row = {"custom_id": f"sku-{number}", "image": "photo.png", "mask": "mask.png", **fields}
                file.write(json.dumps({**row, "num_inference_steps": 1}) + "\n")
        return path
