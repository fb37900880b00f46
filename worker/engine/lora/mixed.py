"""A LoRA set of its own for every row of a batch, the weights untouched: y = W₀·x + Σ s·B·A·x.

While merging gives all rows one set, this gives each its own, for a few percent of the step: the sets' small factors
are multiplied with each layer's input, beside the layer's own product. Rows of one set that lie side by side (the two
halves of guidance, several pictures of one prompt) share its factors; a layer that no row touches costs nothing.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from typing import TYPE_CHECKING, TypeAlias
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from worker.engine.errors import InvalidParameter
from worker.engine.lora.low_rank import rank_of
from worker.engine.lora.products import Factors, Layer, Product, Run, product_of
from worker.engine.lora.sets import Adapter, Terms, fingerprint, terms_of
from worker.engine.lora.targets import TargetTable, named_targets

if TYPE_CHECKING:  # which reads weights files, as does this package
    from worker.engine.unet import UNet2DConditionModel

LoraSet: TypeAlias = tuple[Adapter, ...]

# Arrangements of rows whose products are kept: forwards of several shapes, and of texts and times, take turns.
_REMEMBERED = 8


class MixedLoras:
    """The UNet of which rows may have LoRA sets of their own. Not safe for two threads at once."""

    def __init__(self, unet: "UNet2DConditionModel", table: TargetTable | None = None):
        """`table`: that of the LoRAs' reader, if it is at hand; else the UNet's own is made."""
        self.table = TargetTable.of(unet) if table is None else table
        self._layers: dict[str, Layer] = dict(named_targets(unet, None))
        self._beforehand = frozenset(unet.conditioning_layers())
        self._values = sum(layer.weight.numel() for layer in self._layers.values())
        self._plans: OrderedDict[tuple[str, ...], _Plan] = OrderedDict()
        self._sets: WeakValueDictionary[str, _PreparedSet] = WeakValueDictionary()
        self._active = False

    def mixable(self, adapters: Sequence[Adapter]) -> bool:
        """Whether this set can be mixed: every change of a UNet weight is a product of small rank (so no DoRA).

        Raises `LoraIncompatible` and `InvalidParameter` as `rows` does.
        """
        terms = terms_of(adapters, self.table, "unet")
        return all(rank_of(delta) is not None for layer in terms.values() for delta, _ in layer)

    def size_of(self, adapters: Sequence[Adapter]) -> tuple[int, float]:
        """What a set costs to mix or merge: the largest rank it has at a layer, and the part of all target weights of
        the UNet that it touches, 0…1. A change that is no small product counts as one of full rank.
        """
        terms = terms_of(adapters, self.table, "unet")
        ranks = (sum(rank_of(delta) or min(delta.shape[:2]) for delta, _ in layer) for layer in terms.values())
        touched = sum(self._layers[name].weight.numel() for name in terms)
        return max(ranks, default=0), touched / self._values

    @contextmanager
    def rows(self, sets: Sequence[Sequence[Adapter]]) -> Iterator[None]:
        """Within, every call of the UNet, or of a part of it, must have len(sets) rows, and row i is made with set i.

        The sets are added to whatever the weights hold: take merged ones out first. What is prepared for these rows
        is kept until eight other arrangements were asked for, or `forget`. Raises `LoraIncompatible` (read for another
        model) and `InvalidParameter` (a set that cannot be mixed, see `mixable`; a strength that is not finite) before
        anything is touched.
        """
        if self._active:
            raise RuntimeError("rows of LoRAs cannot be nested: leave the first `with` before the next")
        plan = self._plan([tuple(adapters) for adapters in sets])
        self._active = True
        hooks = [layer.register_forward_hook(plan.add_to) for layer in plan.layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self._active = False

    def prepare(self, sets: Sequence[Sequence[Adapter]]) -> bool:
        """Lay out beforehand what a forward within `rows(sets)` adds with; False if it was so already.

        Keys, values and time embeddings are not its business: they are made once, before the steps (`conditions`).
        Raises as `rows` does.
        """
        return self._plan([tuple(adapters) for adapters in sets]).prepare(self._beforehand)

    def forget(self) -> None:
        """Free what is prepared; the next `rows` prepares it anew. To be called when the UNet was moved or cast."""
        self._plans.clear()

    @property
    def nbytes(self) -> int:
        """Bytes of factors prepared for the device."""
        return sum(prepared.nbytes for prepared in list(self._sets.values()))

    def _plan(self, sets: list[LoraSet]) -> "_Plan":
        distinct = {id(adapters): adapters for adapters in sets}  # a call's rows have one and the same
        names = {each: fingerprint(adapters, "unet") for each, adapters in distinct.items()}
        key = tuple(names[id(adapters)] for adapters in sets)
        if key not in self._plans:
            runs, start = [], 0
            for name, same in groupby(zip(key, sets, strict=True), key=lambda row: row[0]):
                rows = list(same)
                if name:
                    runs.append((start, start + len(rows), self._prepared(name, rows[0][1])))
                start += len(rows)
            self._plans[key] = _Plan(runs, len(sets))
            while len(self._plans) > _REMEMBERED:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _prepared(self, name: str, adapters: LoraSet) -> "_PreparedSet":
        if (known := self._sets.get(name)) is not None:
            return known
        if not self.mixable(adapters):
            sources = ", ".join(adapter.lora.source for adapter in adapters)
            raise InvalidParameter("sets", f"has one that can only be merged, of {sources}: merge it")
        terms = terms_of(adapters, self.table, "unet")
        self._sets[name] = made = _PreparedSet({self._layers[target]: t for target, t in terms.items()})
        return made


class _PreparedSet:
    """One set: for each layer it touches, the factors on the layer's device once they were asked for."""

    def __init__(self, terms: dict[Layer, Terms]):
        self.terms = terms
        self._factors: dict[Layer, Factors] = {}

    def factors(self, layer: Layer) -> Factors:
        if layer not in self._factors:
            self._factors[layer] = Factors.of(self.terms[layer], layer)
        return self._factors[layer]

    @property
    def nbytes(self) -> int:
        return sum(factors.nbytes for factors in self._factors.values())


class _Plan:
    """One arrangement of rows: the product of each layer, made when the layer is first called."""

    def __init__(self, runs: list[tuple[int, int, _PreparedSet]], rows: int):
        self.runs, self.rows = runs, rows
        self.layers = list(dict.fromkeys(layer for _, _, prepared in runs for layer in prepared.terms))
        self._products: dict[Layer, Product] = {}
        self._prepared = False

    @torch.no_grad()
    def prepare(self, but_for: Collection[nn.Module]) -> bool:
        """Make the products of all layers `but_for` these; False if they were made before."""
        if self._prepared:
            return False
        for layer in self.layers:
            if layer not in but_for and layer not in self._products:
                self._products[layer] = self._product(layer)
        self._prepared = True
        return True

    @torch.no_grad()
    def add_to(self, layer: Layer, inputs: tuple[Tensor], output: Tensor) -> None:
        """A forward hook: adds to `output` in place."""
        if len(output) != self.rows:
            raise InvalidParameter("sets", f"has {self.rows} entries for a batch of {len(output)} rows: give one each")
        if layer not in self._products:
            self._products[layer] = self._product(layer)
        self._products[layer](inputs[0], output)

    def _product(self, layer: Layer) -> Product:
        runs = [Run(start, stop, p.factors(layer)) for start, stop, p in self.runs if layer in p.terms]
        return product_of(layer, runs, self.rows)
