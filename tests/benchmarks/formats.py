"""B5, formats: every kind of LoRA file, what it does to the weights beside an oracle in float64, and diffusers.

    python -m tests.benchmarks.formats [--out FILE.json]

The files are made for a small UNet and text encoder, on linear layers and convolutions. ΔW is compared layer by layer;
where diffusers takes the file, too, the outputs of both UNets and text encoders are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import diffusers
import numpy as np
import torch
from safetensors.torch import load

from tests.benchmarks.options import Options, facts, main
from tests.benchmarks.report import Claim, Report, Table
from tests.engine import lora_samples as samples
from tests.engine.lora_pair import Oracle, Ours
from worker.engine.lora import read_lora

DEFAULTS = Options(size="toy", ranks=(3,))
EXACT = 1e-5  # relative, of ΔW in float32
ATTENTION = (samples.LINEAR, samples.CROSS, samples.OUT)
UNET = tuple(name for name in samples.NAMES if name.startswith("unet"))
TEXT = tuple(name for name in samples.NAMES if name.startswith("text_encoder"))


def _old_diffusers(name: str, role: str) -> str:
    return f"{name}.lora.{role}.weight"


def _peft_model(name: str, role: str) -> str:
    return f"base_model.model.{name.partition('.')[2]}.lora_{'A' if role == 'down' else 'B'}.weight"


@dataclass(frozen=True)
class Format:
    """`family` of `samples.FAMILIES` on the layers `names`, spelt by `key`; `magnitude`: the role of DoRA's lengths."""

    name: str
    family: str
    key: Callable[[str, str], str]
    names: Iterable[str] = UNET
    alpha: float | None = None
    magnitude: str = ""


FORMATS = (
    Format("diffusers", "LoRA", samples.peft_key),
    Format("diffusers, older", "LoRA", _old_diffusers, ATTENTION),
    Format("PEFT", "LoRA", _peft_model),
    Format("kohya", "LoRA", samples.kohya_key, UNET, 1.5),
    Format("LoCon", "LoCon", samples.kohya_key, UNET, 1.5),
    Format("LoHa", "LoHa", samples.kohya_key, UNET, 1.5),
    Format("LoHa, Tucker", "LoHa, Tucker", samples.kohya_key, UNET, 1.5),
    Format("LoKr", "LoKr, second factored", samples.kohya_key, UNET, 1.5),
    Format("LoKr, both factored", "LoKr, both factored", samples.kohya_key, UNET, 1.5),
    Format("DoRA, PEFT", "LoRA", samples.peft_key, ATTENTION, None, "magnitude"),
    Format("DoRA, kohya", "LoRA", samples.kohya_key, ATTENTION, 1.5, "dora_scale"),
    Format("text-encoder LoRA", "LoRA", samples.peft_key, TEXT),
    Format("text-encoder LoRA, kohya", "LoRA", samples.kohya_key, TEXT, 1.5),
)


def run(options: Options) -> Report:
    report = Report("B5", "formats", facts(options))
    table = Table(("format", "layers", "this engine", "ΔW differs by", "diffusers", "outputs differ by"))
    report.tables.append(table)
    worst, refused = 0.0, []
    for one in FORMATS:
        files = _files(one, options.seed, options.ranks[0])
        data = samples.write(files, one.key)
        ours = Ours()
        try:
            error = _error(one, files, data, ours, options.ranks[0])
        except ValueError as why:
            refused.append(one.name)
            table.add(one.name, len(files), f"refused: {why}", "", "", "")
            continue
        worst = max(worst, error)
        says, apart = _diffusers(data, ours)
        table.add(one.name, len(files), "accepted", f"{error:.1e}", says, apart)
        report.data[one.name] = {"error": error, "diffusers": says, "outputs": apart}
    report.claims.append(Claim("all accepted", "all" if not refused else f"not {', '.join(refused)}", not refused))
    report.claims.append(Claim(f"ΔW equals a float64 oracle (≤ {EXACT:.0e})", f"{worst:.1e} at worst", worst <= EXACT))
    report.notes.append(
        f"diffusers {diffusers.__version__}; what it cannot load it says with an exception, which is quoted"
    )
    return report


def _files(one: Format, seed: int, rank: int) -> dict[str, samples.Roles]:
    draw, models = samples.Draw(seed), samples.models()
    files = {}
    for name in one.names:
        weight = samples.weight_of(*models, name)
        files[name] = samples.FAMILIES[one.family](draw, tuple(weight.shape), rank)
        if one.alpha is not None:
            files[name]["alpha"] = torch.tensor(one.alpha)
        if one.magnitude:
            length = weight.detach().flatten(1).norm(dim=1) * 1.5
            spread = one.magnitude == "dora_scale"
            files[name][one.magnitude] = length.view(-1, *(1 for _ in weight.shape[1:])) if spread else length
    return files


def _error(one: Format, files: dict[str, samples.Roles], data: bytes, ours: Ours, rank: int) -> float:
    """The largest relative difference of a layer's ΔW from the oracle's."""
    read = read_lora(data, ours.lora.merger.table)
    if read.deltas.keys() != files.keys():
        raise ValueError(f"{len(read.deltas)} layers of {len(files)} were read")
    scale = 1.0 if one.alpha is None else one.alpha / rank
    errors = []
    for name, roles in files.items():
        base = samples.weight_of(ours.unet, ours.text_encoder, name).detach()
        change = scale * samples.oracle(roles, tuple(base.shape))
        if one.magnitude:
            change = _decomposed(base.double().numpy(), change, roles[one.magnitude].double().numpy())
        errors.append(samples.relative(read.deltas[name].change(base, 1.0), change))
    return max(errors)


def _decomposed(base: np.ndarray, change: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """What DoRA adds: the rows of base and change together, at their learnt lengths, less the base."""
    rows = (base + change).reshape(len(base), -1)
    rows *= magnitude.reshape(-1, 1) / np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.reshape(base.shape) - base


def _diffusers(data: bytes, ours: Ours) -> tuple[str, str]:
    """What diffusers says to the file, and how far its outputs are from ours."""
    oracle = Oracle()
    before = oracle.outputs()
    try:
        oracle.load_lora_weights(load(data))
        theirs = oracle.outputs()
    except Exception as why:
        return f"refused: {type(why).__name__}: {str(why).splitlines()[0][:80]}", ""
    if all(torch.equal(now, then) for now, then in zip(theirs, before, strict=True)):
        return "accepted, and without effect", ""
    ours.lora.load_lora_weights(load(data))
    errors = [samples.relative(mine, their) for mine, their in zip(ours.outputs(), theirs, strict=True)]
    return "accepted", f"{max(errors):.1e}"


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
