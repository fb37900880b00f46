"""A mix of jobs as production sees it: read from a trace, or made with the same statistics from a seed.

    python -m tests.benchmarks.trace --compare FILE.csv     the trace's statistics beside the generator's
    python -m tests.benchmarks.trace --write FILE.csv --jobs 10000 --seed 1

A trace is a CSV file with a header and one job a row, in the order of arrival:

    kind                           txt2img, img2img or inpaint
    checkpoint                     base checkpoint of the request
    loras                          `name:scale` parted by spaces; empty for none
    num_images_per_prompt          may be empty
    num_inference_steps            may be empty
    prompt_length                  characters; may be empty
    negative_prompt_length         characters; may be empty

Further columns are ignored. The generator's numbers and where they come from: `trace_model.py`.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KINDS = ("txt2img", "img2img", "inpaint")
COLUMNS = (
    "kind", "checkpoint", "loras", "num_images_per_prompt", "num_inference_steps", "prompt_length",
    "negative_prompt_length",
)  # fmt: skip


@dataclass(frozen=True)
class TraceJob:
    """One job of a trace. None where the trace does not say."""

    kind: str
    checkpoint: str
    loras: tuple[tuple[str, float], ...]  # name and scale
    images: int | None
    steps: int | None
    prompt_length: int | None  # characters
    negative_prompt_length: int | None

    @property
    def lora_set(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.loras)


def read(path: Path) -> list[TraceJob]:
    """The jobs of a trace. Raises ValueError with the line that is none."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        if missing := set(COLUMNS) - set(rows.fieldnames or ()):
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}; it is no trace.")
        jobs = []
        for row in rows:
            try:
                jobs.append(_job(row))
            except (ValueError, TypeError) as error:
                raise ValueError(f"line {rows.line_num} of {path} is no job of a trace: {error}") from None
    return jobs


def _job(row: dict[str, str]) -> TraceJob:
    if None in row.values():
        raise ValueError("it ends before its last column")
    if row["kind"] not in KINDS:
        raise ValueError(f"the kind is {row['kind']!r}")
    pairs = (word.rpartition(":") for word in row["loras"].split())
    loras = tuple((name, float(scale)) for name, _, scale in pairs)
    if not row["checkpoint"] or not all(name and math.isfinite(scale) for name, scale in loras):
        raise ValueError("a checkpoint or LoRA has no name, or a LoRA no finite scale")
    numbers = (int(row[column]) if row[column] else None for column in COLUMNS[3:])
    return TraceJob(row["kind"], row["checkpoint"], loras, *numbers)


def write(path: Path, jobs: Iterable[TraceJob]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for job in jobs:
            loras = " ".join(f"{name}:{scale}" for name, scale in job.loras)
            numbers = (job.images, job.steps, job.prompt_length, job.negative_prompt_length)
            rows.writerow([job.kind, job.checkpoint, loras, *("" if number is None else number for number in numbers)])


def main() -> None:
    from tests.benchmarks.trace_model import synthetic
    from tests.benchmarks.trace_statistics import statistics

    parser = argparse.ArgumentParser(description="Traces of production's mix of jobs.")
    parser.add_argument("--compare", type=Path, metavar="FILE.csv", help="print its statistics beside the generator's")
    parser.add_argument("--write", type=Path, metavar="FILE.csv", help="write a generated trace")
    parser.add_argument("--jobs", type=int, help="how many to generate (default: the trace's, or 10,000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.write:
        write(options.write, synthetic(options.jobs or 10_000, options.seed))
    if options.compare:
        trace = read(options.compare)
        theirs, ours = statistics(trace), statistics(synthetic(options.jobs or len(trace), options.seed))
        print(f"{'':<54}{'trace':>10}{'generator':>11}")
        for name, value in theirs.items():
            print(f"{name:<54}{value:>10.3f}{ours[name]:>11.3f}")


if __name__ == "__main__":
    main()
