"""The command line that all benchmarks of the engine share, and what machine they ran on."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.report import Report

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Options:
    """`size`: a name in `topologies.SIZES`. `side`: pixels of a picture's side. `repeat`: rounds that count."""

    size: str = "small"
    side: int = 128
    repeat: int = 5
    seed: int = 0
    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    device: str = "cpu"
    dtype: str = "float32"
    steps: tuple[int, ...] = (20,)
    ranks: tuple[int, ...] = (16,)
    jobs: tuple[int, ...] = (8,)
    swaps: int = 1000
    seconds: float = 60.0
    trace: Path | None = None
    load: float = 0.8
    store_delays: tuple[float, float] = (0.05, 0.3)  # seconds
    concurrency: int = 16
    lora_targets: str = "attention"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def quick(self) -> Options:
        """As small as it can be and still go every way: seconds, and no number of it means anything."""
        return replace(
            self,
            size="toy",
            side=32,
            repeat=1,
            steps=(2,),
            ranks=(4,),
            jobs=(3,),
            swaps=min(self.swaps, 6),
            seconds=2.0,
            store_delays=(0.001, 0.005),
            concurrency=4,
        )


# What of a field is asked for on the command line, and how it is read; whatever else a field has is its default.
_SEVERAL = {"steps": "of a job", "ranks": "of the LoRAs", "jobs": "how many"}


def read(defaults: Options, about: str | None, arguments: list[str] | None = None) -> tuple[Options, Path | None, Path]:
    """(options, where to write JSON, where to write Markdown) from the command line."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes, everything once or twice: does it run at all")
    parser.add_argument("--size", choices=("toy", "small", "full"), default=defaults.size)
    for name, about_one in {
        "side": "pixels of a picture's side", "repeat": "rounds that count", "seed": "of weights, LoRAs and noise",
        "threads": "of torch", "swaps": "of the soak", "concurrency": "jobs in the engine's hands at once",
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=getattr(defaults, name), help=f"{about_one} (%(default)s)")
    for name, about_one in _SEVERAL.items():
        default = getattr(defaults, name)
        parser.add_argument(f"--{name}", type=int, nargs="+", default=default, help=f"{about_one} {default}")
    parser.add_argument("--device", default=defaults.device, help="cpu or cuda (%(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default=defaults.dtype)
    parser.add_argument("--lora-targets", choices=("attention", "all"), default=defaults.lora_targets)
    parser.add_argument("--trace", type=Path, metavar="FILE.csv", help="jobs to replay (default: generated)")
    parser.add_argument("--load", type=float, default=defaults.load, help="of the arrivals, 1 is all the device can do")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="that a farm is watched (%(default)s)")
    parser.add_argument("--store-delays", type=float, nargs=2, default=defaults.store_delays, metavar="SECONDS")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="every number")
    parser.add_argument("--markdown", type=Path, metavar="FILE.md", help="the table")
    given = vars(parser.parse_args(arguments))
    quick, out, markdown = (given.pop(name) for name in ("quick", "out", "markdown"))
    options = Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
    return (options.quick() if quick else options), out, markdown


def facts(options: Options) -> dict[str, Any]:
    """Under which conditions; taken before the first measurement, since load is others' work."""
    device = torch.device(options.device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return {
        "device": where,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "torch": torch.__version__,
        "diffusers": version("diffusers"),
        "peft": version("peft"),
        "dtype": options.dtype,
        "size": f"{options.size} at {options.side} px",
        "repeats": options.repeat,
        "seed": options.seed,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def prepare(options: Options) -> None:
    """Threads, and products as exact as their dtype: TF32 off, for ours and for the peer."""
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


def main(run: Callable[[Options], Report], defaults: Options, about: str | None) -> None:
    """A benchmark as a program: 1 where outputs that had to be equal were not."""
    options, out, markdown = read(defaults, about)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here.")
    prepare(options)
    report = run(options)
    print(report.markdown())
    report.write(out, markdown)
    if report.shut:
        sys.exit("Outputs that had to be equal were not: " + "; ".join(report.shut))
