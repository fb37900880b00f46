"""All benchmarks of the engine, each in a process of its own, and one table of what they found.

    python -m tests.benchmarks [B1 B4 …] [--gpu | --quick] [--out FOLDER] [--seed 0] [--threads N] [--trace FILE.csv]

With `--out`, RESULTS.md (with `--gpu` RESULTS-gpu.md) and a JSON file of every number are written there. What is not
run is named as not run. Ends with 1 if a benchmark failed, or if outputs that had to be equal were not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.report import Claim, Table

NOT_RUN = "not run here"


@dataclass(frozen=True)
class Run:
    """A program with its arguments; `name` is what DESIGN and tables call it."""

    name: str
    module: str
    arguments: tuple[str, ...] = ()


# On two quiet cores the farm was seen to take 18 minutes; the others, by estimate, an hour and some minutes.
CPU = (
    Run("B1", "new_lora"),
    Run("B2", "new_lora_jobs"),
    Run("B2", "new_lora_jobs", ("--size", "full", "--side", "128", "--repeat", "2")),
    Run("B3", "tax"),
    Run("B4", "soak"),
    Run("B5", "formats"),
    Run("B6", "mixed_batch"),
    Run("B7", "replay"),
    Run("B8", "limit"),
    Run("savings", "savings"),
    Run("savings", "savings", ("--size", "small", "--side", "256", "--repeat", "20")),
    Run("farm", "farm_run"),
)
_CUDA = ("--device", "cuda", "--size", "full", "--side", "512")
GPU = tuple(
    Run(name, module, (*_CUDA, "--dtype", dtype, *more))
    for dtype in ("float16", "bfloat16")
    for name, module, more in (
        ("B1", "new_lora", ("--repeat", "20")),
        ("B2", "new_lora_jobs", ("--repeat", "20")),
        ("B6", "mixed_batch", ("--repeat", "5", "--steps", "20")),
        ("B8", "limit", ("--repeat", "50")),
    )
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="B1 …", help="which to run (default: all)")
    parser.add_argument("--gpu", action="store_true", help="those that say something of a CUDA device, at 512²")
    parser.add_argument("--quick", action="store_true", help="toy sizes: does it run at all")
    parser.add_argument("--out", type=Path, metavar="FOLDER")
    for name in ("seed", "threads", "trace"):
        parser.add_argument(f"--{name}")
    given = parser.parse_args()
    plan = GPU if given.gpu else CPU
    if unknown := set(given.names) - {run.name for run in plan}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    if given.gpu and not torch.cuda.is_available():
        sys.exit(f"The CUDA benchmarks are {NOT_RUN}: torch finds no CUDA device.")
    passed_on = [f"--{name}={value}" for name in ("seed", "threads", "trace") if (value := getattr(given, name))]
    passed_on += ["--quick"] * given.quick
    chosen = [run for run in plan if not given.names or run.name in given.names]
    found = [result for number, run in enumerate(chosen) for result in _made(run, passed_on, number, len(chosen))]
    text = document(found, plan, chosen, gpu=given.gpu)
    print(text)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        stem = "RESULTS-gpu" if given.gpu else "RESULTS"
        (given.out / f"{stem}.md").write_text(text, "utf-8")
        (given.out / f"{stem}.json").write_text(json.dumps([one.data for one in found], indent=2) + "\n", "utf-8")
    sys.exit(any(one.failed for one in found))


@dataclass(frozen=True)
class Result:
    """What a program handed over. `data`: its report's JSON, or why there is none."""

    markdown: str
    data: dict[str, Any]
    failed: bool


def _made(run: Run, passed_on: list[str], number: int, total: int) -> list[Result]:
    sys.stderr.write(f"{run.name}, {run.module} {' '.join(run.arguments)} ({number + 1} of {total})\n")
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out, markdown = Path(folder) / "report.json", Path(folder) / "report.md"
        files = ["--out", str(out), "--markdown", str(markdown)]
        command = [sys.executable, "-m", f"tests.benchmarks.{run.module}", *run.arguments, *passed_on, *files]
        code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        sys.stderr.write(f"{run.name} took {time.monotonic() - begin:,.0f} s\n")
        if not out.exists():
            why = f"{' '.join([run.module, *run.arguments])} ended with {code} and no report"
            return [Result(f"## {run.name}\n\nFAILED: {why}\n", {"name": run.name, "failed": why}, True)]
        return [Result(markdown.read_text("utf-8"), json.loads(out.read_text("utf-8")), code != 0)]


def document(found: list[Result], plan: tuple[Run, ...], chosen: list[Run], *, gpu: bool) -> str:
    """Claims of all in one table first, then each benchmark's own; last what was not run."""
    table = Table(("", "claim", "found", ""))
    for one in found:
        name, facts = one.data["name"], one.data.get("facts", {})
        label = f"{name}, {facts['size']}, {facts['dtype']}" if facts else name
        for claim in one.data.get("claims", ()):
            table.add(label, claim["wanted"], claim["found"], Claim(**claim).verdict)
        for shut in one.data.get("shut", ()):
            table.add(label, "equal outputs", shut, "FAILED")
        if "failed" in one.data:
            table.add(label, "it runs", one.data["failed"], "FAILED")
    left = sorted({run.name for run in plan if run not in chosen})
    notes = [f"{', '.join(left)}: {NOT_RUN}."] if left else []
    if not gpu:
        notes.append(f"On a CUDA device (`make bench-gpu`: B1, B2, B6, B8 at 512²): {NOT_RUN}.")
    head = "# What the engine's benchmarks found" + (", on a CUDA device" if gpu else "")
    return "\n".join([head, "", table.markdown(), "", *(one.markdown for one in found), *notes, ""])


if __name__ == "__main__":
    main()
