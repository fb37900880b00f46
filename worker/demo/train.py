"""`python -m worker.demo.train OUT`: train the demo's model and its LoRAs, or go on with a run that was stopped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from worker.demo.training.loop import Stopped
from worker.demo.training.run import Run
from worker.demo.training.settings import PRESETS, with_changes
from worker.engine.errors import InvalidParameter


def main(arguments: list[str] | None = None) -> int:
    """0 when all is trained, 3 when it was stopped and can be resumed, 2 for settings that do not fit."""
    parser = argparse.ArgumentParser(prog="python -m worker.demo.train", description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the run; one that was begun there is resumed")
    parser.add_argument("--preset", choices=PRESETS, help="default: gpu where there is one, else cpu")
    parser.add_argument("--minutes", type=float, help="stop training, and have everything written, within this time")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--workers", type=int, help="processes that make scenes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    preset = PRESETS[given.preset or ("gpu" if device.type == "cuda" else "cpu")]
    settings = with_changes(preset, minutes=given.minutes, seed=given.seed, workers=given.workers)
    try:
        Run(settings, given.out, device).whole()
    except Stopped:
        sys.stderr.write("\nStopped and saved; the same command goes on from here.\n")
        return 3
    except InvalidParameter as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
