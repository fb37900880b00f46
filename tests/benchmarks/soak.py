"""B4, a soak of swaps: the weights after many swaps, to the bit, and the memory meanwhile.

    python -m tests.benchmarks.soak [--swaps 1000] [--size small] [--out FILE.json]

LoRAs of several ranks take turns in the weights, in float32 (with packed convolutions, as on a CPU) and in bfloat16;
every hundred swaps and at the end all are taken out and every bit of every weight is compared. Beside it diffusers does
`set_adapters`, `fuse_lora`, `unfuse_lora` as often, on LoRAs it has loaded before: what it subtracts, it has rounded.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping

import psutil
import torch
from torch import Tensor, nn

from tests.benchmarks.options import DTYPES, Options, facts, main
from tests.benchmarks.peers import Plain
from tests.benchmarks.report import Claim, Report, Table
from tests.benchmarks.statistic import Progress, interval, milliseconds, percent, seconds
from tests.benchmarks.topologies import Topology, attention_layers
from tests.benchmarks.work import Lora, make_lora
from worker.engine.lora import Adapter, LoraMerger, read_lora
from worker.engine.packing import PackedConvolutions

DEFAULTS = Options(size="small", swaps=1000, ranks=(8, 16, 64))
FLAT_BYTES = 16 * 1024**2  # what an allocator may keep in small change
_INTEGERS = {4: torch.int32, 2: torch.int16}


def run(options: Options) -> Report:
    report = Report("B4", f"soak of {options.swaps:,} swaps", facts(options))
    table = Table(
        ("dtype", "way", "swaps", "a swap, ms", "bits changed", "weights changed", "largest change", "memory grew by")
    )
    report.tables.append(table)
    for dtype in ("float32", "bfloat16"):
        topology = Topology(options.size, options.seed, options.device, DTYPES[dtype])
        for name, found in (
            ("this engine", _ours(topology, options)),
            ("diffusers, fuse and unfuse", _peer(topology, options)),
        ):
            taken = interval(found["seconds"], options.seed).text(milliseconds)
            cells = (
                f"{found['bits']:,}",
                percent(found["part"]),
                f"{found['largest']:.1e}",
                f"{found['grew'] / 2**20:.1f} MiB",
            )
            table.add(dtype, name, f"{len(found['seconds']):,}", taken, *cells)
            report.data[f"{dtype}, {name}"] = found
            if name == "this engine":
                enough = len(found["seconds"]) >= 1000
                for wanted, said, reached in (
                    ("0 bits changed", f"{found['bits']:,}", found["bits"] == 0),
                    ("flat memory", cells[-1], found["grew"] <= FLAT_BYTES),
                ):
                    report.claims.append(Claim(f"{dtype}: {wanted}", said, reached if enough or not reached else None))
    report.notes.append(
        f"flat is ≤ {FLAT_BYTES >> 20} MiB of resident memory between the first hundred swaps and the last"
    )
    return report


def _loras(unet: nn.Module, options: Options) -> list[Lora]:
    shapes = attention_layers(unet, options.lora_targets)
    return [make_lora(shapes, rank, options.seed + i) for i, rank in enumerate((*options.ranks, *options.ranks))]


@torch.no_grad()
def _ours(topology: Topology, options: Options) -> dict:
    unet = topology.our_unet()
    merger = LoraMerger(unet)
    packed = PackedConvolutions(unet)
    before = _copies(unet.state_dict())
    sets = [(Adapter(read_lora(dict(one.tensors), merger.table)),) for one in _loras(unet, options)]

    def swap(number: int) -> None:
        merger.set_adapters(sets[number % len(sets)], check_finite=True)
        packed.refresh()

    def restored() -> dict[str, Tensor]:
        merger.restore()
        return unet.state_dict()

    return _soaked("this engine", topology, options, swap, restored, before)


@torch.no_grad()
def _peer(topology: Topology, options: Options) -> dict:
    pipe = _Own(topology, torch.contiguous_format).pipe
    before = _copies(pipe.unet.state_dict())
    names = []
    for i, lora in enumerate(_loras(pipe.unet, options)):
        names.append(f"lora_{i}")
        cast = {name: tensor.to(topology.dtype) for name, tensor in lora.tensors.items()}
        pipe.load_lora_weights(cast, adapter_name=names[-1])

    def swap(number: int) -> None:
        pipe.set_adapters(names[number % len(names)])
        pipe.fuse_lora(components=["unet"], adapter_names=[names[number % len(names)]])
        pipe.unfuse_lora(components=["unet"])

    def restored() -> dict[str, Tensor]:
        state = pipe.unet.state_dict()
        return {name.replace(".base_layer", ""): tensor for name, tensor in state.items() if ".lora_" not in name}

    return _soaked("diffusers", topology, options, swap, restored, before)


class _Own(Plain):
    own_memory = True


def _soaked(what: str, topology: Topology, options: Options, swap, restored, before: Mapping[str, Tensor]) -> dict:
    """`restored` takes all LoRAs out and gives the weights."""
    taken, bits, resident = [], 0, []
    every = max(1, min(100, options.swaps // 2))
    progress = Progress(f"B4, {what}, {topology.dtype}", options.swaps, "swaps")
    for number in range(options.swaps):
        taken.append(seconds(lambda number=number: swap(number)))
        progress.step()
        if (number + 1) % every == 0 or number + 1 == options.swaps:
            changed, part, largest = _changed(restored(), before)
            bits = max(bits, changed)
            gc.collect()
            resident.append(psutil.Process().memory_info().rss)
    return {"seconds": taken, "bits": bits, "part": part, "largest": largest, "grew": resident[-1] - resident[0]}


def _copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def _changed(now: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> tuple[int, float, float]:
    """Bits that differ, the part of weights that do, and the largest difference beside its tensor's largest weight."""
    assert now.keys() == before.keys(), "other weights than before"
    bits = weights = 0
    largest = 0.0
    for name, tensor in before.items():
        differing = sum(_differing(now[name], tensor))
        if differing:
            bits += differing
            unequal = now[name] != tensor
            weights += int(unequal.sum())
            largest = max(largest, float((now[name].float() - tensor.float()).abs().max() / tensor.float().abs().max()))
    return bits, weights / sum(tensor.numel() for tensor in before.values()), largest


def _differing(now: Tensor, before: Tensor) -> Iterator[int]:
    integers = _INTEGERS[before.element_size()]
    both = now.contiguous().view(integers) ^ before.contiguous().view(integers)
    if bool(both.any()):
        for place in range(8 * before.element_size()):
            yield int(((both >> place) & 1).sum())


if __name__ == "__main__":
    main(run, DEFAULTS, __doc__)
