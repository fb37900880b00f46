"""The formats LoRA files come in: how each spells a module (`stems`) and the tensors that belong to it (`LEAVES`).

A key is a stem and a leaf. No spelling means two things, so a file's format never has to be guessed: every key is
looked up among the spellings of all formats, and a key that none of them explains is an error.
"""

from collections.abc import Iterable

from worker.engine.lora.formats import diffusers, kohya, lycoris, peft

# Regular expression of a key's end -> the role its tensor plays (see `assembly.py`).
LEAVES: dict[str, str] = {**diffusers.LEAVES, **peft.LEAVES, **kohya.LEAVES, **lycoris.LEAVES}


def stems_of(component: str, paths: Iterable[str]) -> dict[str, list[str]]:
    """All spellings of each of the module `paths` of one component ("unet" or "text_encoder")."""
    paths = list(paths)
    spelled = {path: [*diffusers.stems(component, path), *peft.stems(component, path)] for path in paths}
    for path, stem in kohya.stems(component, paths):
        spelled[path].append(stem)
    return spelled
