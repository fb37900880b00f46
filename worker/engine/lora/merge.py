"""Writing LoRAs into a model's weights and taking them out again, to the last bit.

A swap never subtracts. The first time a weight is touched, a copy of it is kept; every set after that is written as
W₀ + Σ sᵢ·ΔWᵢ from that copy, in float32, rounded once to the weight's dtype, into the storage where the weight always
was (so pointers, views and CUDA graphs stay valid). Restoring is copying W₀ back, and so is exact by construction.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from worker.engine.errors import LoraNonFinite
from worker.engine.lora.deltas import LowRank
from worker.engine.lora.sets import Adapter, Terms, fingerprint, terms_of
from worker.engine.lora.targets import TargetTable, named_targets

# How many values of a weight are summed at once on a CPU: 1 MiB of float32.
_CACHED_VALUES = 1 << 18


class LoraMerger:
    """The LoRA set of one UNet and one text encoder (either may be None).

    Between swaps the models' weights must not be written, moved or cast by others, but within `detached()`; a merged
    weight that was raises RuntimeError at the next swap. Not safe for two threads at once.
    """

    def __init__(self, unet: nn.Module | None, text_encoder: nn.Module | None = None):
        self.table = TargetTable.of(unet, text_encoder)
        self._modules = dict(named_targets(unet, text_encoder))
        self._pristine: dict[str, Tensor] = {}
        self._stamps: dict[str, tuple[object, ...]] = {}
        self._terms: dict[str, Terms] = {}
        self._set: tuple[Adapter, ...] = ()
        self._fingerprint = ""
        # Weights whose writing was cut off and could not be taken back: the next swap writes them whatever it is.
        self._unsure: set[str] = set()

    @property
    def adapters(self) -> tuple[Adapter, ...]:
        """The set that is in the weights."""
        return self._set

    def fingerprint(self, component: str | None = None) -> str:
        """A hash of the set that is in the weights, or of what of it acts on one component; "" where nothing does.

        Equal fingerprints on equal base weights mean equal weights, so it is a key for whatever is computed from them.
        """
        return fingerprint(self._set, component)

    def set_adapters(self, adapters: Iterable[Adapter | tuple], *, check_finite: bool = False) -> bool:
        """Make the weights W₀ + Σ s·ΔW of exactly these; True if anything was to be written.

        All or nothing: whatever is raised, the weights are, bit for bit, what they were before. Raises
        `InvalidParameter` (a strength that is not finite), `LoraIncompatible` (a LoRA read for another model), and with
        `check_finite` `LoraNonFinite` if a sum leaves the range of the weights' dtype.
        """
        wanted = tuple(Adapter(*adapter) for adapter in adapters)
        name = fingerprint(wanted)
        if not self._unsure and name == self._fingerprint:
            return False
        terms = terms_of(wanted, self.table)
        changed = [
            target
            for target in dict.fromkeys((*self._unsure, *self._terms, *terms))
            if target in self._unsure or _key(terms.get(target, ())) != _key(self._terms.get(target, ()))
        ]
        self._check_untouched(changed)
        self._replace(changed, terms, check_finite)
        self._terms, self._set, self._fingerprint = terms, wanted, name
        self._unsure.clear()
        return True

    @torch.no_grad()
    def _replace(self, changed: Iterable[str], terms: Mapping[str, Terms], check_finite: bool) -> None:
        written: list[str] = []
        sums: list[Tensor] = []
        try:
            for name in changed:
                self._unsure.add(name)
                written.append(name)
                sums += self._write(name, terms.get(name, ()))
            # One number stands for them all: whoever looks at a number waits for the device.
            if check_finite and sums and not torch.stack(sums).sum().isfinite():
                self._require_finite(written)
        except BaseException:
            for name in written:
                self._write(name, self._terms.get(name, ()))
                self._unsure.discard(name)
            raise

    def _require_finite(self, names: Iterable[str]) -> None:
        for name in names:
            if not self._modules[name].weight.isfinite().all():
                raise LoraNonFinite(f"{name}: the sum of weight and LoRA is not finite; lower its scale")

    def restore(self) -> bool:
        """Take every LoRA out: the weights are bit-equal to those first seen. True if there was one."""
        return self.set_adapters(())

    def base_copies(self) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
        """Each target's weight, and the tensors that hold its base at this moment: the copy it is restored from, where
        it was ever touched, and the weight itself while nothing is merged into it.
        """
        for name, module in self._modules.items():
            kept = (self._pristine[name],) if name in self._pristine else ()
            yield module.weight, kept if name in self._terms else (*kept, module.weight)

    @contextmanager
    def detached(self) -> Iterator[None]:
        """Within, the weights are the base's and may be moved, cast or replaced; after, the set is merged anew."""
        adapters = self._set
        self.restore()
        self._pristine.clear()
        self._stamps.clear()
        try:
            yield
        finally:
            self.set_adapters(adapters)

    def _check_untouched(self, names: Iterable[str]) -> None:
        """Notice what others did to the weights: learn base weights anew, refuse merged ones, which are lost."""
        for name in names:
            if name in self._pristine and self._stamps[name] != _stamp(self._modules[name].weight):
                if name in self._terms:
                    raise RuntimeError(f"{name} was written or moved while a LoRA was merged into it; use `detached()`")
                del self._pristine[name]

    def _write(self, name: str, terms: Terms) -> list[Tensor]:
        """As `_merge`, of which this is the part that remembers."""
        weight = self._modules[name].weight
        if name not in self._pristine:
            self._pristine[name] = weight.clone()
        try:
            return _merge(weight, self._pristine[name], terms)
        finally:
            self._stamps[name] = _stamp(weight)


def _merge(weight: Tensor, base: Tensor, terms: Terms) -> list[Tensor]:
    """weight ← base + Σ strength·ΔW, in place; in float32, or wider if the weight is.

    Sums of what was written, finite only if all of it is; none where the base is written as it was.
    """
    exact = torch.promote_types(weight.dtype, torch.float32)
    if not terms:
        weight.copy_(base)
        return []
    rows = _rows(weight)
    if rows is not None and all(isinstance(delta, LowRank) for delta, _ in terms):
        return _merge_low_rank(rows, _rows(base), *_product(weight, terms, exact))
    origin = base.to(exact)
    total = origin.clone()
    for delta, strength in terms:
        total += delta.change(origin, strength)
    weight.copy_(total)
    return [weight.sum(dtype=exact)]


def _product(weight: Tensor, terms: Terms, exact: torch.dtype) -> tuple[Tensor, Tensor]:
    """A sum of LoRAs as up [out, r] · down [r, rest], in the order in which `_rows` gives the weight."""
    ups, downs = [], []
    for delta, strength in terms:
        up, down = (factor.to(weight.device, exact) for factor in (delta.up, delta.down))
        if not weight.is_contiguous():  # channels last: the rows hold the kernel's axes before the inputs
            down = down.view(-1, *weight.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        ups.append(up * (strength * delta.scale))
        downs.append(down)
    return (ups[0], downs[0]) if len(terms) == 1 else (torch.cat(ups, dim=1), torch.cat(downs))


def _merge_low_rank(weight: Tensor, base: Tensor, up: Tensor, down: Tensor) -> list[Tensor]:
    """weight ← base + up·down, all of them [rows, columns]; there is never a ΔW in memory. Returns as `_merge`.

    A CPU is bound by memory here: what is done, and summed, block by block is in its cache. A GPU wants one launch.
    """
    exact, sums = up.dtype, []
    block = len(weight) if weight.device.type != "cpu" else max(1, _CACHED_VALUES // weight.shape[1])
    for rows in (slice(start, start + block) for start in range(0, len(weight), block)):
        out = weight[rows]
        if out.dtype == exact:
            torch.addmm(base[rows], up[rows], down, out=out)
        else:
            out.copy_(base[rows].to(exact).addmm_(up[rows], down))
        sums.append(out.sum(dtype=exact))
    return sums


def _rows(weight: Tensor) -> Tensor | None:
    """The weight as [out, rest] without a copy, whether its memory is in channels-first or channels-last order."""
    if weight.is_contiguous():
        return weight.view(weight.shape[0], -1)
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return weight.permute(0, 2, 3, 1).view(weight.shape[0], -1)
    return None


def _stamp(weight: Tensor) -> tuple[object, ...]:
    """Changes when anybody writes the weight in place or gives it other memory."""
    return weight.data_ptr(), weight.dtype, weight.device, weight._version


def _key(terms: Terms) -> tuple[tuple[int, float], ...]:
    return tuple((id(delta), strength) for delta, strength in terms)
