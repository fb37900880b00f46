"""`python -m worker.demo.quality [CHECKPOINT LORAS]`: measure the shipped model, or another."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from worker.demo import shipped
from worker.demo.quality.painter import GUIDANCE, STEPS, Painter
from worker.demo.quality.report import measure, table


def main() -> int:
    """0 if every floor is reached, else 1."""
    parser = argparse.ArgumentParser(prog="python -m worker.demo.quality", description=__doc__)
    parser.add_argument("checkpoint", type=Path, nargs="?", default=shipped.CHECKPOINT)
    parser.add_argument("loras", type=Path, nargs="?", default=shipped.LORAS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    given = parser.parse_args()
    measures = []
    painter = Painter(given.checkpoint, given.loras, steps=given.steps, guidance=given.guidance)
    for line in table(measures.append(one) or one for one in measure(painter)):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return 0 if all(one.passed for one in measures) else 1


if __name__ == "__main__":
    sys.exit(main())
