"""Swaps: the right sum, in the same memory, and out again to the last bit, whatever happens in between."""

import dataclasses
import gc
import resource
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.engine import lora_samples as samples
from worker.engine.errors import InvalidParameter, LoraIncompatible, LoraNonFinite
from worker.engine.lora import Adapter, LoraMerger, LoraWeights, TargetTable, read_lora
from worker.engine.lora.strengths import BlockStrength

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


class Bench:
    """The tiny models, their merger, and their weights as they were."""

    def __init__(self, dtype: torch.dtype = torch.float32, channels_last: bool = False):
        self.unet, self.text_encoder = samples.models(dtype=dtype)
        if channels_last:
            self.unet.to(memory_format=torch.channels_last)
        self.merger = LoraMerger(self.unet, self.text_encoder)
        self.before = self.bits()
        self.pointers = {name: weight.data_ptr() for name, weight in self.weights()}

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.unet.named_parameters(prefix="unet")
        yield from self.text_encoder.named_parameters(prefix="text_encoder")

    def bits(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights()}

    def weight(self, name: str) -> Tensor:
        return samples.weight_of(self.unet, self.text_encoder, name).detach()

    def lora(self, seed: int, family: str = "LoRA", names: tuple[str, ...] = samples.NAMES, **roles) -> LoraWeights:
        draw, table = samples.Draw(seed), self.merger.table
        files = {n: {**samples.FAMILIES[family](draw, table.targets[n].shape, 3), **roles} for n in names}
        return read_lora(samples.write(files, samples.kohya_key), table)


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    """Bit for bit: torch.equal would take -0 for 0."""
    assert one.keys() == two.keys()
    return all(torch.equal(_words(one[name]), _words(two[name])) for name in one)


def _words(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def live_tensors() -> int:
    return sum(issubclass(type(o), Tensor) for o in gc.get_objects())


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("family", samples.FAMILIES)
@DTYPES
def test_the_sum_is_float32s_rounded_once(dtype, family, channels_last):
    bench = Bench(dtype, channels_last)
    first, second = bench.lora(1, family), bench.lora(2, "LoRA", samples.NAMES[:4])
    assert bench.merger.set_adapters([(first, 0.7, 0.3), (second, -0.4, 1.0)])
    for name in samples.NAMES:
        strength = 0.7 if name.startswith("unet") else 0.3
        base = bench.before[name.replace("text_model.", "") + ".weight"]
        exact = base.double() + strength * first.deltas[name].weight(torch.float64)
        if name in second.deltas:
            exact = exact - 0.4 * second.deltas[name].weight(torch.float64)
        found = bench.weight(name)
        assert samples.relative(found, exact) < {torch.float32: 1e-6, torch.float16: 4e-4, torch.bfloat16: 3e-3}[dtype]
        if dtype != torch.float32:
            # Rounded once: float32's error moves a value over the middle between two neighbours only rarely.
            assert (found != exact.to(dtype)).float().mean() < 0.01
    assert {name: weight.data_ptr() for name, weight in bench.weights()} == bench.pointers
    bench.merger.restore()
    assert same_bits(bench.bits(), bench.before)


def test_float64_weights_are_summed_in_float64():
    bench = Bench(torch.float64)
    lora = bench.lora(1)
    bench.merger.set_adapters([(lora, 0.7, 0.7)])
    exact = bench.before[f"{samples.CONV}.weight"] + 0.7 * lora.deltas[samples.CONV].weight(torch.float64)
    assert samples.relative(bench.weight(samples.CONV), exact) < 1e-14


def test_dora_acts_on_the_base_weight_beside_other_loras():
    bench = Bench()
    size = (bench.merger.table.targets[samples.LINEAR].shape[0], 1)
    dora = bench.lora(1, names=(samples.LINEAR,), dora_scale=torch.full(size, 0.8))
    plain = bench.lora(2, names=(samples.LINEAR,))
    base = bench.weight(samples.LINEAR).clone()
    bench.merger.set_adapters([(plain, 1.0, 1.0), (dora, 0.5, 1.0)])
    expected = base + plain.deltas[samples.LINEAR].weight() + dora.deltas[samples.LINEAR].change(base, 0.5)
    assert samples.relative(bench.weight(samples.LINEAR), expected) < 1e-6
    bench.merger.restore()
    assert same_bits(bench.bits(), bench.before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_thousand_swaps_change_no_bit_and_keep_no_memory(dtype):
    bench = Bench(dtype)
    families = ["LoRA", "LoCon", "LoHa", "LoKr, both factored"]
    loras = [bench.lora(seed, family, samples.NAMES[seed % 3 :]) for seed, family in enumerate(families)]
    reference = None
    for swap in range(1000):
        one, two = loras[swap % 4], loras[(swap // 4) % 4]
        bench.merger.set_adapters([(one, 0.1 + swap % 7, 1.0)] + ([(two, 0.5, 0.5)] if swap % 3 else []))
        if swap % 50 == 49:
            bench.merger.restore()
            assert same_bits(bench.bits(), bench.before)
        if swap == 200:
            gc.collect()
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            tensors = live_tensors()
        if swap in (10, 998):  # 10 and 998 make the same set: so do their weights
            bench.merger.set_adapters([(loras[0], 0.9, 1.0), (loras[1], 0.3, 1.0)])
            reference = reference or bench.bits()
            assert same_bits(bench.bits(), reference)
    gc.collect()
    assert live_tensors() <= tensors
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8192, "KiB"
    assert {name: weight.data_ptr() for name, weight in bench.weights()} == bench.pointers
    bench.merger.restore()
    assert same_bits(bench.bits(), bench.before)


def test_a_set_replaces_the_one_before_it_as_if_that_had_never_been():
    bench, fresh = Bench(), Bench()
    both = bench.lora(1), bench.lora(2, "LoHa", samples.NAMES[3:5])
    bench.merger.set_adapters([(both[0], 1.0, 1.0)])
    bench.merger.set_adapters([(both[1], 1.0, 1.0)])
    fresh.merger.set_adapters([(both[1], 1.0, 1.0)])
    assert same_bits(bench.bits(), fresh.bits())


def test_an_equal_set_is_not_written_again():
    bench = Bench()
    lora, again = bench.lora(1), bench.lora(1)
    assert bench.merger.set_adapters([Adapter(lora, 0.5, 0.5)])
    versions = {name: weight._version for name, weight in bench.weights()}
    assert not bench.merger.set_adapters([Adapter(again, 0.5, 0.5)])
    assert versions == {name: weight._version for name, weight in bench.weights()}
    # Another strength for the text encoder leaves the UNet's weights alone.
    assert bench.merger.set_adapters([Adapter(lora, 0.5, 0.6)])
    moved = {name for name, weight in bench.weights() if weight._version != versions[name]}
    assert moved and all(name.startswith("text_encoder") for name in moved)


def test_only_what_a_lora_touches_is_copied_or_written():
    bench = Bench()
    versions = {name: weight._version for name, weight in bench.weights()}
    bench.merger.set_adapters([(bench.lora(1, names=(samples.LINEAR,)), 1.0, 1.0)])
    moved = {name for name, weight in bench.weights() if weight._version != versions[name]}
    assert moved == {f"{samples.LINEAR}.weight"}
    assert bench.merger._pristine.keys() == {samples.LINEAR}


def test_fingerprints_tell_sets_apart_by_component():
    bench = Bench()
    merger, lora, other = bench.merger, bench.lora(1), bench.lora(2)
    unet_only = bench.lora(3, names=(samples.LINEAR, samples.CONV))
    assert merger.fingerprint() == merger.fingerprint("unet") == ""
    seen = set()
    for adapters in (
        [(lora, 1.0, 1.0)],
        [(other, 1.0, 1.0)],
        [(lora, 0.5, 1.0)],
        [(lora, 1.0, 1.0), (other, 1.0, 1.0)],
    ):
        merger.set_adapters(adapters)
        seen.add(merger.fingerprint("unet"))
    assert len(seen) == 4
    text = merger.fingerprint("text_encoder")
    merger.set_adapters([(lora, 1.0, 1.0), (other, 1.0, 1.0), (unet_only, 1.0, 1.0)])
    assert merger.fingerprint("text_encoder") == text and merger.fingerprint("unet") not in seen
    merger.set_adapters([(lora, None, 1.0)])
    assert merger.fingerprint("unet") == "" != merger.fingerprint("text_encoder")


def test_a_component_can_be_left_alone():
    bench = Bench()
    bench.merger.set_adapters([(bench.lora(1), None, 1.0)])
    after = bench.bits()
    changed = {name for name in after if not torch.equal(after[name], bench.before[name])}
    assert changed and all(name.startswith("text_encoder") for name in changed)


def test_strengths_by_block():
    bench = Bench()
    strength = BlockStrength((("down_blocks.0.attentions.0", 2.0), ("mid_block.attentions.0", 0.0)), rest=0.5)
    lora = bench.lora(1)
    bench.merger.set_adapters([(lora, strength, 1.0)])
    for name, factor in ((samples.LINEAR, 2.0), (samples.DOWNSAMPLE, 2.0), (samples.POINT, 0.0), (samples.CONV, 0.5)):
        expected = bench.before[f"{name}.weight"] + factor * lora.deltas[name].weight()
        assert samples.relative(bench.weight(name), expected) < 1e-6


def spoiled(lora: LoraWeights, name: str, **change) -> LoraWeights:
    """`lora`, fit to be planned and unfit to be written at `name`."""
    deltas = {**lora.deltas, name: dataclasses.replace(lora.deltas[name], **change)}
    return dataclasses.replace(lora, deltas=deltas, fingerprint="spoiled")


@DTYPES
def test_a_failure_in_the_middle_of_a_swap_leaves_the_set_before_it(dtype):
    bench = Bench(dtype)
    good, other = bench.lora(1), bench.lora(2, "LoKr, full")
    bench.merger.set_adapters([(good, 0.8, 0.6)])
    between, fingerprint = bench.bits(), bench.merger.fingerprint()
    bad = spoiled(bench.lora(3), samples.NAMES[6], down=torch.ones(3, 5))
    with pytest.raises(RuntimeError):
        bench.merger.set_adapters([(other, 1.0, 1.0), (bad, 1.0, 1.0)])
    assert same_bits(bench.bits(), between) and bench.merger.fingerprint() == fingerprint
    bench.merger.set_adapters([(other, 1.0, 1.0)])
    bench.merger.restore()
    assert same_bits(bench.bits(), bench.before)


def test_weights_that_could_not_even_be_taken_back_are_written_at_the_next_swap(monkeypatch):
    bench = Bench()
    bench.merger.set_adapters([(bench.lora(1, names=(samples.TEXT_OUT,)), 1.0, 1.0)])
    write, calls = LoraMerger._write, []

    def failing(self, name, terms):
        calls.append(name)
        if len(calls) > 3:
            raise MemoryError
        return write(self, name, terms)

    monkeypatch.setattr(LoraMerger, "_write", failing)
    with pytest.raises(MemoryError):
        bench.merger.set_adapters([(bench.lora(2), 1.0, 1.0)])
    monkeypatch.undo()
    bench.merger.restore()
    assert same_bits(bench.bits(), bench.before)


def test_a_sum_beyond_float16_is_refused_where_asked_and_taken_back():
    bench = Bench(torch.float16)
    lora = bench.lora(1)
    with pytest.raises(LoraNonFinite, match="not finite"):
        bench.merger.set_adapters([(lora, 1e6, 1.0)], check_finite=True)
    assert same_bits(bench.bits(), bench.before) and bench.merger.fingerprint() == ""


def test_a_finite_sum_is_accepted_though_its_numbers_do_not_add_up():
    """Each number is within float32's range, and all together are beyond it."""
    bench = Bench()
    with torch.no_grad():
        bench.weight(samples.LINEAR).fill_(3e38)
    assert bench.merger.set_adapters([(bench.lora(1, names=(samples.LINEAR,)), 1.0, 1.0)], check_finite=True)


def test_finiteness_is_looked_at_once_a_swap(monkeypatch):
    """On a GPU every look waits for the device."""
    bench, looks = Bench(), []
    isfinite = Tensor.isfinite
    monkeypatch.setattr(Tensor, "isfinite", lambda tensor: looks.append(tensor.numel()) or isfinite(tensor))
    bench.merger.set_adapters([(bench.lora(1), 1.0, 1.0)], check_finite=True)
    assert looks == [1]


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_must_be_finite(strength):
    bench = Bench()
    with pytest.raises(InvalidParameter, match="finite"):
        bench.merger.set_adapters([(bench.lora(1), strength, 1.0)])
    assert same_bits(bench.bits(), bench.before)


def test_a_lora_read_for_another_model_is_refused_before_anything_is_written():
    bench = Bench()
    other = TargetTable.of(bench.unet, None)
    wide = dataclasses.replace(other.targets[samples.LINEAR], shape=(32, 40))
    table = TargetTable({**other.targets, samples.LINEAR: wide})
    lora = read_lora(
        samples.write({samples.LINEAR: samples.lora(samples.Draw(0), (32, 40), 2)}, samples.kohya_key), table
    )
    versions = {name: weight._version for name, weight in bench.weights()}
    with pytest.raises(LoraIncompatible, match="another model"):
        bench.merger.set_adapters([(bench.lora(1), 1.0, 1.0), (lora, 1.0, 1.0)])
    assert versions == {name: weight._version for name, weight in bench.weights()}


# Others' hands on the weights.


def test_detached_weights_may_be_cast_and_the_set_follows():
    bench = Bench()
    lora = bench.lora(1)
    bench.merger.set_adapters([(lora, 0.5, 0.5)])
    with bench.merger.detached():
        assert same_bits(bench.bits(), bench.before)
        bench.unet.to(torch.bfloat16)
    expected = bench.before[f"{samples.CONV}.weight"].bfloat16() + 0.5 * lora.deltas[samples.CONV].weight()
    assert bench.weight(samples.CONV).dtype == torch.bfloat16
    assert samples.relative(bench.weight(samples.CONV), expected) < 3e-3
    bench.merger.restore()
    assert torch.equal(bench.weight(samples.CONV), bench.before[f"{samples.CONV}.weight"].bfloat16())


def test_merged_weights_that_others_wrote_are_noticed():
    bench = Bench()
    bench.merger.set_adapters([(bench.lora(1), 1.0, 1.0)])
    with torch.no_grad():
        bench.weight(samples.LINEAR).add_(1.0)
    with pytest.raises(RuntimeError, match="detached"):
        bench.merger.restore()


def test_base_weights_that_others_wrote_are_learnt_anew():
    bench = Bench()
    lora = bench.lora(1)
    bench.merger.set_adapters([(lora, 1.0, 1.0)])
    bench.merger.restore()
    bench.unet.load_state_dict({name: torch.zeros_like(w) for name, w in bench.unet.state_dict().items()})
    bench.merger.set_adapters([(lora, 1.0, 1.0)])
    assert samples.relative(bench.weight(samples.LINEAR), lora.deltas[samples.LINEAR].weight()) < 1e-6
    bench.merger.restore()
    assert bench.weight(samples.LINEAR).abs().max() == 0


def test_a_lora_moves_to_a_device_whole():
    bench = Bench()
    for family in samples.FAMILIES:
        size = {"dora_scale": torch.ones(32, 1)}
        lora = bench.lora(1, family, (samples.LINEAR,), **size).to("meta")
        delta = lora.deltas[samples.LINEAR]
        factors = [v for part in (delta, delta.inner) for v in vars(part).values() if isinstance(v, Tensor)]
        assert len(factors) >= 3 and all(factor.device.type == "meta" for factor in factors)
