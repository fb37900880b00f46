"""The trained model that lies in this package: a checkpoint in diffusers' layout, a LoRA for each brand look, and the
journal of the run that they came from.

    model/model_index.json  unet/  vae/  text_encoder/  tokenizer/  scheduler/
    model/loras/<look>.safetensors
    model/training.json

Nothing here imports torch: to copy files takes none.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

CHECKPOINT: Final = Path(__file__).parent / "model"
LORAS: Final = CHECKPOINT / "loras"
JOURNAL: Final = CHECKPOINT / "training.json"


def copy_model(folder: Path) -> None:
    """Write the model to `folder`/checkpoint and `folder`/loras, neither of which may be there yet.

    Raises FileExistsError.
    """
    for part in ("checkpoint", "loras"):
        if (folder / part).exists():
            raise FileExistsError(f"{folder / part} is there already; choose another folder.")
    shutil.copytree(CHECKPOINT, folder / "checkpoint", ignore=shutil.ignore_patterns(LORAS.name, JOURNAL.name))
    shutil.copytree(LORAS, folder / "loras")
