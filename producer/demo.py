"""`farm demo`: a whole farm on this machine renders real photographs, and shows what it did."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from itertools import cycle
from pathlib import Path

from PIL import Image
from rich.console import Console

from farm.errors import Misconfigured, WorkerCrashed
from farm.schemas import InpaintJob, JobResult, LoraRef, dump_line
from farm.states import JobState
from producer.client import Client
from producer.embedded import EmbeddedFarm
from producer.handle import JobHandle
from producer.page import write_page
from producer.photos import STUDIO, Scene, demo_scenes
from producer.process import Process
from producer.progress import JobProgress

_MARKER = ".inpaint-farm-demo"
_PARTS = ("farm", "inputs", "pictures", "results.ndjson", "index.html")
# Of the model that is rendered with: the sizes it was trained on, and what was found to look best with it.
SIZES = ("128x128", "192x128", "128x192", "192x192")
_STEPS, _GUIDANCE = 12, 2.0
# Each brand's LoRA, and the words for its look.
BRANDS = {
    "polka": "polka dots",
    "confetti": "confetti",
    "neon": "neon grid",
    "terrazzo": "terrazzo",
    "stripes": "diagonal stripes",
}


def run_demo(out: Path, *, jobs: int, as_json: bool = False) -> int:
    """Render `jobs` edits into `out`, telling about it; 0 if every one succeeded and kept its promise, else 1.

    Raises Misconfigured if `out` holds somebody else's files.
    """
    out, console = out.resolve(), Console(quiet=as_json)
    _clear(out)
    console.print("Making the demo model, and starting Redis and one worker …")
    model = out / "farm" / "model"
    _make_model(model, out / "farm" / "model.log")
    with EmbeddedFarm(out / "farm", model_path=model / "checkpoint", environment=_environment(out, model)) as farm:
        farm.wait_ready()
        client = Client(farm.settings)
        begin = time.monotonic()
        handles = [client.submit(job) for job in _jobs(demo_scenes(jobs), model / "loras", out)]
        results = _watched(handles, farm, as_json=as_json)
        seconds = time.monotonic() - begin
        scraped = farm.scrape()
    (out / "results.ndjson").write_bytes(b"".join(dump_line(result) for result in results))
    summary = _summary(results, seconds)
    rows = [json.loads(result.to_json()) for result in results]
    write_page(out / "index.html", rows, title="Inpaint Farm demo", summary=summary)
    _report(console, out, results, summary, scraped)
    if as_json:
        sys.stdout.write(json.dumps({**summary, "page": str(out / "index.html")}) + "\n")
    good = all(
        result.status is JobState.SUCCEEDED and result.receipt and result.receipt.max_abs_diff_outside == 0
        for result in results
    )
    return 0 if good else 1


def _clear(out: Path) -> None:
    if out.exists() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise Misconfigured(f"{out} is not empty and was not made by the demo; choose another --out.")
    for part in _PARTS:
        path = out / part
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for part in ("farm", "inputs", "pictures"):
        (out / part).mkdir(parents=True)
    (out / _MARKER).touch()


def _environment(out: Path, model: Path) -> dict[str, str]:
    return {
        "FARM_LOCAL_ROOTS": json.dumps([str(out / "inputs"), str(out / "pictures"), str(model / "loras")]),
        "FARM_SIZE_BUCKETS": json.dumps(SIZES),
        "FARM_LEASE_SECONDS": "30",
    }


def _make_model(folder: Path, log: Path) -> None:
    maker = Process([sys.executable, "-m", "worker", "demo-model", str(folder)], log)
    try:
        failed = maker.popen.wait()
    finally:
        maker.stop()
    if failed:
        raise Misconfigured(f"The demo model could not be made: {maker.tail(400)}")


def _jobs(scenes: Iterable[Scene], loras: Path, out: Path) -> Iterator[InpaintJob]:
    """A studio's backdrop comes in a brand's look, the next brand's each time; what is no backdrop, in none."""
    brands = cycle(BRANDS.items())
    for scene in scenes:
        if scene.prompt in STUDIO:
            name, words = next(brands)
            lora = LoraRef(path=f"file://{loras / name}.safetensors")
            yield _job(scene, f"{scene.prompt}, {words}", (lora,), out)
        else:
            yield _job(scene, scene.prompt, (), out)


def _job(scene: Scene, prompt: str, loras: tuple[LoraRef, ...], out: Path) -> InpaintJob:
    def put(picture: Image.Image, name: str) -> str:
        buffer = BytesIO()
        picture.save(buffer, "PNG")
        path = out / "inputs" / name
        path.write_bytes(buffer.getvalue())
        return f"file://{path}"

    return InpaintJob(
        custom_id=scene.custom_id,
        image=put(scene.image, f"{scene.custom_id}.png"),
        mask=put(scene.mask, f"{scene.custom_id}-mask.png"),
        prompt=prompt,
        loras=loras,
        num_inference_steps=_STEPS,
        guidance_scale=_GUIDANCE,
        scheduler="model",
        output=f"file://{out / 'pictures'}/",
    )


def _watched(handles: Sequence[JobHandle], farm: EmbeddedFarm, *, as_json: bool) -> list[JobResult]:
    """The results in the order of `handles`, once all are there. Raises WorkerCrashed where none would come."""
    done: dict[int, JobResult] = {}
    with JobProgress(len(handles), as_json=as_json) as progress:
        while len(done) < len(handles):
            for number, handle in enumerate(handles):
                if number not in done and (result := handle.peek()) is not None:
                    done[number] = result
                    progress.add(result)
            progress.show()
            if farm.worker and farm.worker.exit_code is not None:
                raise WorkerCrashed(f"The worker ended with {farm.worker.exit_code}:\n{farm.worker.tail()}")
            time.sleep(0.1)
    return [done[number] for number in sorted(done)]


def _summary(results: Sequence[JobResult], seconds: float) -> dict[str, object]:
    succeeded = [result for result in results if result.status is JobState.SUCCEEDED]
    modes = [result.lora_mode for result in succeeded if result.loras]
    # Jobs in one step share what its LoRAs take, and one without any pays when the weights are put back for it.
    swapped = sum(result.lora_swap_seconds for result in succeeded)
    outside = [result.receipt.max_abs_diff_outside for result in succeeded if result.receipt]
    return {
        "jobs": len(results),
        "succeeded": len(succeeded),
        "seconds": round(seconds, 1),
        "images_per_second": round(sum(len(result.outputs) for result in succeeded) / seconds, 2),
        "with_lora": len(modes),
        "lora_merged": sum("merged" in mode for mode in modes),
        "lora_mixed": sum("mixed" in mode for mode in modes),
        "lora_swap_each_ms": round(1000 * swapped / len(modes), 1) if modes else None,
        "largest_difference_outside_the_mask": max(outside, default=None),
    }


def _report(
    console: Console, out: Path, results: Sequence[JobResult], summary: dict[str, object], scraped: str
) -> None:
    console.print(
        f"[bold]{summary['succeeded']} of {summary['jobs']} succeeded[/] in {summary['seconds']} s, "
        f"{summary['images_per_second']} images/s; largest difference outside the masks: "
        f"{summary['largest_difference_outside_the_mask']}"
    )
    console.print(
        f"{summary['with_lora']} with a LoRA, {summary['lora_merged']} of them with it merged into the weights and "
        f"{summary['lora_mixed']} mixed with others in one batch; swapping took {summary['lora_swap_each_ms']} ms each"
    )
    failures: dict[str, list[str]] = {}
    for result in results:
        if result.error:
            failures.setdefault(f"{result.error.code}: {result.error.message}", []).append(result.custom_id)
    for why, which in failures.items():
        console.print(f"  {', '.join(which)}: {why}", markup=False)
    console.print("From the worker's /metrics:")
    for line in scraped.splitlines():
        if _SHOWN.match(line):
            console.print(f"  {line}", markup=False, highlight=False)
    console.print(f"Look at {out / 'index.html'}\n   (pictures in {out / 'pictures'}, results in results.ndjson)")


_SHOWN = re.compile(
    r"farm_(jobs_total\{.*succeeded|images_total|denoise_steps_total|lora_swaps_total|engine_busy_seconds_total"
    r"|lora_swap_seconds_(sum|count)|job_seconds_sum\{.*(denoise|total)|vram_bytes)"
)
