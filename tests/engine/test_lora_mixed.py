"""Rows with LoRAs of their own: each must come out as it does alone, with its set merged into the weights."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.engine import lora_samples as samples
from worker.engine.errors import InvalidParameter, LoraIncompatible
from worker.engine.lora import Adapter, LoraMerger, LoraWeights, MixedLoras, mixed, read_lora
from worker.engine.lora.deltas import Decomposed, Hadamard, Kronecker, LowRank
from worker.engine.lora.low_rank import MOST_BY_IDENTITY, low_rank, rank_of
from worker.engine.lora.products import Batched, Separate, bucket
from worker.engine.lora.strengths import BlockStrength
from worker.engine.unet import UNet2DConditionModel

NEW = {"use_linear_projection": True}  # SD 2.x: projections are linear layers


class Bench:
    """A tiny UNet, its merger, and what both ways make of a batch."""

    def __init__(self, dtype: torch.dtype = torch.float32, channels_last: bool = False, **config):
        torch.manual_seed(0)
        self.unet = UNet2DConditionModel(**{**samples.UNET_CONFIG, **config}).eval().to(dtype)
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.dtype, self.device = dtype, "cpu"
        self.merger = LoraMerger(self.unet)
        self.mixed = MixedLoras(self.unet, self.merger.table)

    def to(self, device: str) -> None:
        self.unet.to(device)
        self.device = device

    def every_target(self) -> tuple[str, ...]:
        return tuple(self.merger.table.targets)

    def lora(self, seed: int, rank: int = 3, names: tuple[str, ...] | None = None, family: str = "LoRA", **roles):
        draw, table = samples.Draw(seed), self.merger.table
        names = self.every_target() if names is None else names
        files = {n: {**samples.FAMILIES[family](draw, table.targets[n].shape, rank), **roles} for n in names}
        return read_lora(samples.write(files, samples.kohya_key), table)

    def batch(self, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        sample = torch.randn(rows, 4, 8, 8, generator=generator).to(self.dtype)
        context = torch.randn(rows, 7, 24, generator=generator).to(self.dtype)
        times = torch.randint(0, 1000, (rows,), generator=generator)
        sample = sample.contiguous(memory_format=self.layout)
        return sample.to(self.device), times.to(self.device), context.to(self.device)

    @torch.no_grad()
    def merged(self, sets) -> Tensor:
        """Each row by itself, with its set in the weights."""
        rows = []
        for row, adapters in zip(zip(*self.batch(len(sets)), strict=True), sets, strict=True):
            self.merger.set_adapters(adapters)
            rows.append(self.unet(*(value[None].contiguous(memory_format=self._layout(value)) for value in row)))
        self.merger.restore()
        return torch.cat(rows)

    def _layout(self, value: Tensor) -> torch.memory_format:
        return self.layout if value.dim() == 3 and value.shape[0] == 4 else torch.contiguous_format

    @torch.no_grad()
    def side_by_side(self, sets) -> Tensor:
        with self.mixed.rows(sets):
            return self.unet(*self.batch(len(sets)))


def worst_row(found: Tensor, expected: Tensor) -> float:
    return max(samples.relative(a, b) for a, b in zip(found, expected, strict=True))


@pytest.fixture(params=["separate", "batched"])
def products(request, monkeypatch):
    """Both ways to compute an addition, whatever the device would choose."""
    made = {
        "separate": lambda layer, runs, rows: Separate(layer, runs),
        "batched": lambda layer, runs, rows: Batched.of(layer, runs, rows),
    }[request.param]
    monkeypatch.setattr("worker.engine.lora.mixed.product_of", made)


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("config", [{}, NEW], ids=["convolutional projections", "linear projections"])
def test_every_row_equals_its_merged_solo_run(config, channels_last):
    bench = Bench(channels_last=channels_last, **config)
    a, b = bench.lora(1), bench.lora(2, rank=9)
    part = bench.lora(3, names=tuple(n for n in bench.every_target() if "attn" in n))
    sets = [(Adapter(a),), (Adapter(a),), (), (Adapter(b, 0.6), Adapter(part, -0.5)), (Adapter(part),), ()]
    base = bench.merged([()] * len(sets))
    expected = bench.merged(sets)
    found = bench.side_by_side(sets)
    assert worst_row(found, expected) <= 1e-5
    assert all(samples.relative(expected[i], base[i]) > 1e-2 for i in (0, 1, 3, 4))
    assert worst_row(found[2:3], base[2:3]) <= 1e-5
    with torch.no_grad():
        after = bench.unet(*bench.batch(len(sets)))
    assert worst_row(after, base) <= 1e-5
    assert not any(layer._forward_hooks for layer in bench.unet.modules())


@pytest.mark.usefixtures("products")
def test_the_packed_projection_stays_in_use_and_gets_the_additions():
    bench = Bench()
    a, b = bench.lora(1), bench.lora(2)
    sets = [(Adapter(a),), (Adapter(b),), ()]
    expected = bench.merged(sets)
    bench.unet.fuse_qkv_projections()
    with torch.no_grad(), bench.mixed.rows(sets):
        layers = list(bench.unet.attention_layers().values())
        calls = [layer.packed.stands_for(layer._together()) for layer in layers]
        found = bench.unet(*bench.batch(3))
    assert all(calls)
    assert worst_row(found, expected) <= 1e-5


@pytest.mark.usefixtures("products")
@pytest.mark.parametrize("family", samples.FAMILIES)
def test_every_family_that_is_a_small_product_can_be_mixed(family):
    bench = Bench()
    lora = bench.lora(1, family=family)
    sets = [(Adapter(lora, 0.7),), ()]
    if not bench.mixed.mixable(sets[0]):
        assert family == "LoKr, full"
        with pytest.raises(InvalidParameter, match="can only be merged"), bench.mixed.rows(sets):
            pass
        small = tuple(n for n in samples.NAMES if n.startswith("unet") and rank_of(lora.deltas[n]) is not None)
        sets = [(Adapter(bench.lora(1, family=family, names=small), 0.7),), ()]
    assert worst_row(bench.side_by_side(sets), bench.merged(sets)) <= 1e-5


@pytest.mark.parametrize("family", ["LoRA", "LoCon", "LoHa", "LoHa, Tucker", "LoKr, both factored", "LoKr, Tucker"])
def test_a_product_is_its_delta(family):
    bench = Bench()
    for name, delta in bench.lora(4, family=family).deltas.items():
        product = low_rank(delta)
        assert isinstance(product, LowRank)
        assert product.rank == rank_of(delta)
        assert samples.relative(product.weight(torch.float64), delta.weight(torch.float64)) < 1e-6, name


def test_what_is_no_small_product_is_left_to_merging():
    draw = samples.Draw(1)
    wide = Hadamard(draw(64, 17), draw(17, 64), draw(64, 17), draw(17, 64), 1.0, (64, 64))
    whole = Kronecker(draw(4, 4), draw(128, 128), 1.0, (512, 512))
    dora = Decomposed(LowRank(draw(64, 2), draw(2, 64), 1.0, (64, 64)), draw(64, 1), inside=True)
    assert MOST_BY_IDENTITY < 17 * 17
    for delta in (wide, whole, dora):
        assert rank_of(delta) is None
        with pytest.raises(ValueError, match="merge it"):
            low_rank(delta)


def test_dora_cannot_be_mixed_and_says_so():
    bench = Bench()
    size = (bench.merger.table.targets[samples.LINEAR].shape[0], 1)
    dora = bench.lora(1, names=(samples.LINEAR,), dora_scale=torch.full(size, 0.8))
    assert not bench.mixed.mixable((Adapter(dora),))
    assert bench.mixed.mixable((Adapter(bench.lora(1)),))
    with pytest.raises(InvalidParameter, match="merge it"), bench.mixed.rows([(), (Adapter(dora),)]):
        pass
    assert not any(layer._forward_hooks for layer in bench.unet.modules())


def test_what_does_not_fit_is_refused_before_anything_is_touched():
    bench = Bench()
    good = bench.lora(1)
    delta = good.deltas[samples.LINEAR]
    foreign = LoraWeights({samples.CONV: delta}, "0")
    with pytest.raises(LoraIncompatible), bench.mixed.rows([(Adapter(good),), (Adapter(foreign),)]):
        pass
    with pytest.raises(InvalidParameter, match="finite"), bench.mixed.rows([(Adapter(good, float("nan")),)]):
        pass
    with torch.no_grad(), bench.mixed.rows([(Adapter(good),)] * 2):
        with pytest.raises(InvalidParameter, match="2 entries for a batch of 3"):
            bench.unet(*bench.batch(3))
        with pytest.raises(RuntimeError, match="nested"), bench.mixed.rows([()]):
            pass
    assert not any(layer._forward_hooks for layer in bench.unet.modules())


def test_only_touched_layers_are_hooked():
    bench = Bench()
    lora = bench.lora(1, names=(samples.LINEAR, samples.CONV))
    with bench.mixed.rows([(Adapter(lora),), (), (Adapter(lora, None),)]):
        hooked = {f"unet.{name}" for name, layer in bench.unet.named_modules() if layer._forward_hooks}
    assert hooked == {samples.LINEAR, samples.CONV}
    with bench.mixed.rows([(), (Adapter(lora, None),)]):
        assert not any(layer._forward_hooks for layer in bench.unet.modules())


@torch.no_grad()
def test_what_is_prepared_is_kept_while_the_rows_stay_the_same():
    bench = Bench()
    a, b = (Adapter(bench.lora(1)),), (Adapter(bench.lora(2)),)
    layer = bench.unet.get_submodule(samples.CONV.removeprefix("unet."))

    def product(sets):
        bench.side_by_side(sets)
        return next(reversed(bench.mixed._plans.values()))._products[layer]

    first = product([a, a, b])
    assert product([a, a, b]) is first
    assert [(run.start, run.stop) for run in first.runs] == [(0, 2), (2, 3)]
    fewer = product([a, b])
    assert all(x.factors is y.factors for x, y in zip(fewer.runs, first.runs, strict=True))
    one = bench.mixed.nbytes
    assert one > 0
    for rows in range(1, 10):
        product([a] * rows)
    assert len(bench.mixed._plans) == 8
    assert bench.mixed.nbytes == one // 2  # nothing that is kept has b in it
    bench.mixed.forget()
    assert bench.mixed.nbytes == 0


@torch.no_grad()
def test_what_is_prepared_before_a_step_is_not_made_in_it(monkeypatch):
    bench = Bench()
    sets = [(Adapter(bench.lora(1)),)] * 2 + [(Adapter(bench.lora(2)),)]
    expected = bench.side_by_side(sets)
    bench.mixed.forget()
    sample, times, context = bench.batch(3)
    assert bench.mixed.prepare(sets)
    assert not bench.mixed.prepare(sets)
    with bench.mixed.rows(sets):
        times, texts = bench.unet.time_states(times), bench.unet.text_keys_values(context)
        monkeypatch.setattr(mixed, "product_of", lambda *_: pytest.fail("made in the step"))
        assert samples.relative(bench.unet(sample, times, texts), expected) <= 1e-6


@pytest.mark.parametrize("sides", [((0, 2), (2, 4), (4, 8)), ((0, 1), (1, 3)), ((2, 4), (6, 8))])
def test_a_batch_is_cut_into_groups_as_large_as_its_runs_allow(sides):
    bench = Bench()
    layer = bench.unet.get_submodule(samples.LINEAR.removeprefix("unet."))
    sets = [((Adapter(bench.lora(i, rank=i + 1, names=(samples.LINEAR,))),) if i >= 0 else ()) for i in range(3)]
    rows: list = [()] * 8
    for (start, stop), adapters in zip(sides, itertools.cycle(sets), strict=False):
        rows[start:stop] = [adapters] * (stop - start)
    bench.side_by_side(rows)
    runs = next(iter(bench.mixed._plans.values()))._products[layer].runs
    batched = Batched.of(layer, runs, 8)
    assert batched.groups == {(0, 2): 4, (0, 1): 8, (2, 4): 4}[sides[0]]
    assert batched.down.shape == (batched.groups, 8, 32)
    x = torch.randn(8, 5, 32)
    one, two = torch.zeros(8, 5, 32), torch.zeros(8, 5, 32)
    batched(x, one)
    Separate(layer, runs)(x, two)
    torch.testing.assert_close(one, two)


def test_ranks_are_padded_to_few_sizes():
    assert [bucket(r) for r in (1, 8, 9, 16, 33, 65, 128, 129, 300)] == [8, 8, 16, 16, 64, 128, 128, 256, 384]


def test_strengths_of_single_blocks_count():
    bench = Bench()
    lora = bench.lora(1)
    by_block = BlockStrength((("down_blocks.0.attentions.0", 0.2),), rest=-0.4)
    sets = [(Adapter(lora, by_block),), (Adapter(lora),)]
    assert worst_row(bench.side_by_side(sets), bench.merged(sets)) <= 1e-5


@pytest.mark.usefixtures("products")
def test_in_bfloat16_a_mixed_row_is_as_near_to_float32_as_a_merged_one():
    exact, half = Bench(), Bench(torch.bfloat16)
    half.unet.load_state_dict(exact.unet.state_dict())
    exact.unet.load_state_dict(half.unet.state_dict())  # the same weights, rounded once
    loras = [exact.lora(seed) for seed in range(3)]
    sets = [(Adapter(lora, 0.5),) for lora in loras]
    truth = exact.merged(sets)
    errors = {name: worst_row(getattr(half, name)(sets), truth) for name in ("merged", "side_by_side")}
    assert errors["side_by_side"] <= 1.25 * errors["merged"], errors
    assert errors["side_by_side"] < 3e-2, errors


@torch.no_grad()
def test_weights_and_inference_mode_are_left_alone():
    bench = Bench()
    before = {name: t.clone() for name, t in bench.unet.state_dict().items()}
    sets = [(Adapter(bench.lora(1)),), ()]
    expected = bench.side_by_side(sets)
    bench.mixed.forget()
    with torch.inference_mode():
        inside = bench.side_by_side(sets)
    assert torch.equal(inside, expected)
    assert torch.equal(bench.side_by_side(sets), expected)  # with what was prepared in inference mode
    assert all(torch.equal(t, before[name]) for name, t in bench.unet.state_dict().items())


def test_a_set_on_the_text_encoder_alone_changes_no_row():
    unet, text_encoder = samples.models()
    merger = LoraMerger(unet, text_encoder)
    lora = read_lora(samples.simple_lora(1, (samples.TEXT,)), merger.table)
    mixed = MixedLoras(unet, merger.table)
    assert mixed.mixable((Adapter(lora),))
    with mixed.rows([(Adapter(lora),)]):
        assert not any(layer._forward_hooks for layer in unet.modules())
