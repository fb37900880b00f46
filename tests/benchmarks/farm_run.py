"""A farm at work: how much of a worker's wall is inside model forwards, with mixed LoRAs and a slow store.

    python -m tests.benchmarks.farm_run [--seconds 600] [--repeat 3] [--size full] [--side 128]
                                        [--store-delays 0.1 0.1] [--out F]

All of it is real: Redis, a dispatcher and a worker as processes of their own, and Ceph's radosgw behind a proxy that
makes every request at least `--store-delays` late (a body is late once more for each 64 kB). Jobs are a backlog, each
with a picture, text, seed, steps, scheduler and one of eight LoRAs of its own. What is said is read from the worker's
/metrics in `--repeat` windows that are `--seconds` long together. Each begins when jobs have ended one after the other
for a while, and each has a batch of its own; what is left of it is canceled, and then the bare loop of forwards on the
same weights has the machine, which is not equally quick from minute to minute. In all windows:

- the share of the wall by which `farm_engine_busy_seconds_total` grew
- rows times steps a second (the sum of `farm_engine_batch_size`) beside the mean of the bare loops before and after

Before either is said, some of its pictures are painted once more by the idle farm, each alone, and have to be the same.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save

from farm.metrics import STAGES
from farm.schemas import InpaintJob, JobResult
from farm.states import JobState
from producer.client import Client
from producer.embedded import EmbeddedFarm
from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.ours import Ours
from tests.benchmarks.report import Claim, Gate, Report, Table, worst
from tests.benchmarks.statistic import Progress, interval, percent
from tests.benchmarks.topologies import Topology, attention_layers
from tests.benchmarks.work import Job, make_lora
from tests.faults.proxy import Proxy
from tests.servers import ceph
from tests.servers.s3 import S3Server, shared_radosgw, stop_shared

DEFAULTS = Options(
    size="full", side=128, repeat=3, seconds=600, steps=(12, 16, 20, 30), ranks=(16,), store_delays=(0.1, 0.1)
)
LORAS = 8
SCHEDULERS = ("ddim", "euler", "dpmpp_2m")
AGAIN = 3  # pictures that are painted once more
BUSY, KEPT = 0.98, 0.9
BUCKET = "farm-run"
_BUSY = "farm_engine_busy_seconds_total"
_PATIENCE = 600.0  # seconds for the worker to be warm


@dataclass(frozen=True)
class Reading:
    """What the worker's metrics said at a moment (time.monotonic)."""

    at: float
    values: dict[str, float]

    @classmethod
    def of(cls, farm: EmbeddedFarm) -> Reading:
        text, at = farm.scrape(), time.monotonic()
        lines = re.findall(r"^(farm_\w+(?:\{[^}]*\})?) (\S+)$", text, re.MULTILINE)
        return cls(at, {name: float(value) for name, value in lines})

    @property
    def succeeded(self) -> float:
        return self._sum("farm_jobs_total", 'status="succeeded"')

    @property
    def failed(self) -> float:
        return self._sum("farm_jobs_total", 'status="failed"')

    def stage(self, name: str) -> float:
        return self._sum("farm_job_seconds_sum", f'stage="{name}"')

    def _sum(self, metric: str, label: str = "") -> float:
        return sum(v for name, v in self.values.items() if re.match(rf"{metric}(\{{|$)", name) and label in name)


@dataclass(frozen=True)
class Window:
    """The worker's readings at its ends, and row-steps a second of the bare loop before and after."""

    begun: Reading
    ended: Reading
    bare: tuple[float, float]

    @property
    def wall(self) -> float:
        return self.ended.at - self.begun.at

    def grew(self, name: str) -> float:
        return self.ended.values[name] - self.begun.values[name]

    @property
    def made(self) -> float:
        """Row-steps a second."""
        return self.grew("farm_engine_batch_size_sum") / self.wall

    @property
    def kept(self) -> float:
        """Of the bare loop's."""
        return 2 * self.made / sum(self.bare)

    @property
    def jobs(self) -> float:
        return self.ended.succeeded - self.begun.succeeded


def run(options: Options) -> Report:
    report = Report("farm", f"a farm's worker for {options.seconds:,.0f} s", facts(options))
    topology = Topology(options.size, options.seed, options.device, options.torch_dtype)
    with tempfile.TemporaryDirectory(prefix="farm-run-") as name:
        folder = Path(name)
        checkpoint = folder / "checkpoint"
        topology.theirs().save_pretrained(checkpoint)
        with _slow_store(folder, options) as (s3, environment):
            windows, gate, texts = _farm(folder, s3, environment, checkpoint, topology, options)
    _tell(report, options, windows, report.gated("a picture painted alone", gate))
    report.notes += texts
    return report


@contextmanager
def _slow_store(folder: Path, options: Options) -> Iterator[tuple[S3Server, dict[str, str]]]:
    """The server as it is, and the environment of those who reach it slowed."""
    if absent := ceph.missing():
        sys.exit(f"No {', '.join(absent)} here, which the store is made of: tests/servers/install.sh installs them.")
    (folder / "s3").mkdir()
    try:
        s3 = shared_radosgw(folder / "s3", os.getpid())
        s3.client.create_bucket(Bucket=BUCKET)
        with Proxy(int(s3.endpoint.rsplit(":", 1)[1]), seed=options.seed) as proxy:
            proxy.up.delay = max(options.store_delays)
            yield s3, {**s3.environment(), "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{proxy.port}"}
    finally:
        stop_shared(folder / "s3")


def _farm(
    folder: Path, s3: S3Server, slowed: dict[str, str], checkpoint: Path, topology: Topology, options: Options
) -> tuple[list[Window], Gate, list[str]]:
    environment = {
        **slowed,
        "FARM_STORE": f"s3://{BUCKET}/farm",
        "FARM_SIZE_BUCKETS": f'["{max(64, options.side)}x{max(64, options.side)}"]',
        "FARM_DEVICE": options.device,
        "FARM_DTYPE": options.dtype,
        "OMP_NUM_THREADS": str(options.threads),
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = dict(os.environ)
    with ExitStack() as stack:
        os.environ.update(s3.environment())  # the client's own requests are not slowed
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        farm = stack.enter_context(EmbeddedFarm(folder / "farm", model_path=checkpoint, environment=environment))
        client = Client(farm.settings)
        farm.wait_ready(_PATIENCE)  # the worker measures its device: nothing else is to be done meanwhile
        ours = stack.enter_context(Ours(topology, options))
        ours.warm_up()
        bare = ours.bare_row_steps(what="the bare loop")
        jobs = _jobs(client, topology, options, bare)
        windows, results, each = [], [], len(jobs) // options.repeat
        for number in range(options.repeat):
            batch = client.submit_batch(jobs[number * each : (number + 1) * each])
            begun, ended = _window(farm, options, number)
            batch.cancel()
            batch.wait(_PATIENCE)
            results += [one for one in batch.results() if one.status is JobState.SUCCEEDED]
            bare, before_it = ours.bare_row_steps(what="the bare loop"), bare
            windows.append(Window(begun, ended, (before_it, bare)))
        gate = _painted_again(client, jobs, results)
        told = [line for line in farm.worker.log.read_text("utf-8").splitlines() if "measured:" in line]
    return windows, gate, told


def _jobs(client: Client, topology: Topology, options: Options, bare: float) -> list[InpaintJob]:
    """More than can be done in the time, their inputs in the store."""
    root, shapes = f"s3://{BUCKET}/in", attention_layers(topology.our_unet(own_memory=False), options.lora_targets)

    def put(name: str, data: bytes) -> str:
        uri = f"{root}/{name}"
        client.store.put(uri, data, content_type="application/octet-stream", create_only=False)
        return uri

    loras = []
    for number in range(LORAS):
        lora = make_lora(shapes, options.ranks[-1], options.seed + number, options.torch_dtype)
        data = save({name: tensor.contiguous() for name, tensor in lora.tensors.items()})
        loras.append((put(f"lora-{number}.safetensors", data), sha256(data).hexdigest()))
    mask = put("mask.png", _png(Job(0, 1, options.side).mask))
    row_steps = 2 * sum(options.steps) / len(options.steps)
    toy = options.size == "toy"
    beside = (200 if toy else 20) * options.repeat  # those that end before a window, and are canceled after it
    count = beside + (0 if toy else int(1.3 * options.seconds * bare / row_steps))
    progress, jobs = Progress("farm, its inputs", count, "pictures"), []
    for number in range(count):
        seed = 10_000 * options.seed + number
        uri, digest = loras[seed * 7919 % LORAS]
        jobs.append(
            InpaintJob(
                custom_id=f"job-{number:06d}", image=put(f"{number}.png", _png(Job(seed, 1, options.side).picture)),
                mask=mask, prompt=f"photo {number} of a shoe", negative_prompt="blurred", seed=seed,
                num_inference_steps=options.steps[number % len(options.steps)], guidance_scale=4 + number % 5,
                scheduler=SCHEDULERS[number % len(SCHEDULERS)],
                loras=({"path": uri, "scale": 0.5 + 0.1 * (number % 6), "sha256": digest},),
            )
        )  # fmt: skip
        progress.step()
    return jobs


def _png(picture: Image.Image) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _window(farm: EmbeddedFarm, options: Options, number: int) -> tuple[Reading, Reading]:
    """The readings at its ends."""
    seconds = options.seconds / options.repeat
    warm = Reading.of(farm).succeeded + 4
    while (begun := Reading.of(farm)).succeeded < warm:
        _none_failed(farm, begun)
        time.sleep(0.1)
    now, said = begun, begun
    while now.at - begun.at < seconds:
        time.sleep(min(1.0, seconds / 4))
        now = Reading.of(farm)
        if now.at - said.at >= 5:
            said, window = now, Window(begun, now, (1.0, 1.0))
            sys.stderr.write(
                f"  farm, window {number + 1} of {options.repeat}: {window.jobs:,.0f} jobs, {window.made:.2f} "
                f"row-steps/s, {percent(window.grew(_BUSY) / window.wall)} inside forwards, "
                f"{seconds - window.wall:,.0f} s left\n"
            )
    _none_failed(farm, now)
    return begun, now


def _none_failed(farm: EmbeddedFarm, reading: Reading) -> None:
    if reading.failed:
        raise RuntimeError(f"{reading.failed:.0f} jobs failed:\n{farm.worker.tail()}")


def _painted_again(client: Client, jobs: Sequence[InpaintJob], results: Sequence[JobResult]) -> Gate:
    """The first jobs' pictures beside the same jobs painted alone, and without their LoRAs."""
    by_name, gates = {job.custom_id: job for job in jobs}, []
    for result in results[:AGAIN]:
        job = by_name[result.custom_id]
        alone, without = (
            client.submit(job.model_copy(update={"custom_id": f"{job.custom_id}-{name}", **changed})).result(_PATIENCE)
            for name, changed in (("alone", {}), ("without", {"loras": ()}))
        )
        shown, again, plain = (_pixels(client, one) for one in (result, alone, without))
        gates.append(Gate(_apart(shown, again), 1.0, _apart(again, plain)))
    return worst(gates)


def _pixels(client: Client, result: JobResult) -> np.ndarray:
    data = client.store.get(result.outputs[0].uri, max_bytes=1 << 26).data
    return np.asarray(Image.open(BytesIO(data)).convert("RGB")).astype(int)


def _apart(one: np.ndarray, two: np.ndarray) -> float:
    """The largest difference of a channel, of 255."""
    return float(np.abs(one - two).max())


def _tell(report: Report, options: Options, windows: Sequence[Window], gate: Gate) -> None:
    wall, jobs = sum(one.wall for one in windows), sum(one.jobs for one in windows)
    busy = sum(one.grew(_BUSY) for one in windows) / wall
    kept = interval([one.kept for one in windows])
    table = Table(("window, s", "jobs", "inside forwards", "row-steps/s", "bare loop", "of it", "rows a forward"))
    for one in windows:
        rows = one.made * one.wall / one.grew("farm_engine_batch_size_count")
        bare = " and ".join(f"{rate:.1f}" for rate in one.bare)
        table.add(
            f"{one.wall:.1f}", f"{one.jobs:.0f}", percent(one.grew(_BUSY) / one.wall), f"{one.made:.1f}", bare,
            gate.ratio(one.kept, percent), f"{rows:.2f}",
        )  # fmt: skip
    stages = Table(("stage", "s a job"), [], "Where a job's time goes")
    seconds = {
        name: sum(one.ended.stage(name) - one.begun.stage(name) for one in windows) / max(1, jobs) for name in STAGES
    }
    for name, taken in seconds.items():
        stages.add(name, f"{taken:.3f}")
    report.tables += [table, stages]
    report.data |= {"wall": wall, "busy": busy, "jobs": jobs, "stages": seconds}
    report.data["windows"] = [{"wall": one.wall, "made": one.made, "bare": one.bare} for one in windows]
    report.notes.append(f"pictures painted once more, each alone, differ by at most {gate.text} of 255")
    judged = options.size != "toy" and gate.open
    report.claims.append(
        Claim("≥ 98 % of the wall inside model forwards", gate.ratio(busy, percent), busy >= BUSY if judged else None)
    )
    report.claims.append(
        Claim("steps/s ≥ 90 % of the bare loop", gate.ratio(kept, percent), kept.median >= KEPT if judged else None)
    )


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
