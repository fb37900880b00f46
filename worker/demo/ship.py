"""`python -m worker.demo.ship RUN`: put a finished run's model where the package ships it from."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Final

from worker.demo import shipped
from worker.demo.training.lineage import Lineage

LARGEST: Final = 25_000_000  # bytes, of everything
LARGEST_LORA: Final = 300_000  # bytes


def main(arguments: list[str] | None = None) -> int:
    """0, or 2 when the run is not finished or its files are too large."""
    parser = argparse.ArgumentParser(prog="python -m worker.demo.ship", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run of worker.demo.train")
    run = parser.parse_args(arguments).run
    if complaint := _complaint(run):
        sys.stderr.write(f"{complaint}\n")
        return 2
    shutil.rmtree(shipped.CHECKPOINT, ignore_errors=True)
    shutil.copytree(run / "checkpoint", shipped.CHECKPOINT)
    shutil.copytree(run / "loras", shipped.LORAS)
    Lineage.of_run(run).save(shipped.JOURNAL)
    return 0


def _complaint(run: Path) -> str | None:
    loras = sorted((run / "loras").glob("*.safetensors"))
    if not (run / "checkpoint" / "model_index.json").is_file() or not loras:
        return f"{run} has no checkpoint or no LoRAs yet; let `python -m worker.demo.train {run}` finish."
    if large := [path.name for path in loras if path.stat().st_size > LARGEST_LORA]:
        return f"LoRAs over {LARGEST_LORA} bytes: {', '.join(large)}; choose smaller ranks."
    files = [path for part in ("checkpoint", "loras") for path in (run / part).rglob("*") if path.is_file()]
    if (size := sum(path.stat().st_size for path in files)) > LARGEST:
        return f"{size} bytes in all, over {LARGEST}; choose smaller widths."
    return None


if __name__ == "__main__":
    sys.exit(main())
