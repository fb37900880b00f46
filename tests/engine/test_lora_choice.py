"""Merged or mixed: the choice by made-up tables, each sum checked step by step; and a table that is measured."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.engine import lora_samples as samples
from worker.engine.errors import InvalidParameter
from worker.engine.lora import Adapter, LoraMerger, MixedLoras, read_lora
from worker.engine.lora.choice import Choice, Costs, Demand, Phase, choose
from worker.engine.lora.measure import measure

MIXED = {(16, 2): 0.05, (16, 8): 0.11, (128, 2): 0.2, (128, 8): 0.4}
# A GPU that is not full: sixteen rows take little longer than one. A CPU: a row is a row.
GPU = Costs(step={1: 1.0, 16: 1.5}, merge={0: 0.1, 16: 0.2, 128: 0.3}, mixed=MIXED)
CPU = Costs(step={1: 1.0, 16: 16.0}, merge={0: 0.05, 16: 0.1, 128: 0.2}, mixed=MIXED)


def demand(lora: str, steps: int = 20, rows: float = 2, rank: int = 16, share: float = 1.0, mixable: bool = True):
    return Demand(lora, rows, steps, rank, share, mixable) if lora else Demand("", rows, steps)


def modes(choice: Choice) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(phase.mode, phase.lora, phase.members) for phase in choice.phases]


def test_a_gpu_with_room_mixes_what_differs():
    choice = choose([demand("a"), demand("b"), demand("")], GPU)
    assert modes(choice) == [("mixed", "", (0, 1, 2))]
    assert choice.seconds == pytest.approx(20 * (1 + 0.5 * 5 / 15) * 1.05)


def test_a_cpu_takes_turns_with_what_is_merged_first_and_the_shortest_next():
    demands = [demand("a", 30), demand("b", 10), demand("c", 20)]
    assert modes(choose(demands, CPU)) == [("merged", n, (i,)) for n, i in (("b", 1), ("c", 2), ("a", 0))]
    held = choose(demands, CPU, merged="a")
    assert modes(held) == [("merged", n, (i,)) for n, i in (("a", 0), ("b", 1), ("c", 2))]
    assert held.seconds == pytest.approx(2 * 60 + 2 * 0.1)


def test_a_merge_that_no_step_pays_back_is_spared():
    dear = Costs(CPU.step, {0: 1.0, 16: 5.0}, CPU.mixed)
    demands = [demand("a", 1), demand("b", 1), demand("c", 1)]
    assert modes(choose(demands, dear)) == [("mixed", "", (0, 1, 2))]
    long = [demand(name, 400) for name in "abc"]
    assert all(phase.mode == "merged" for phase in choose(long, dear).phases)


def test_one_set_is_merged_whatever_the_device():
    for costs in (GPU, CPU):
        assert modes(choose([demand("a"), demand("a", 3)], costs)) == [("merged", "a", (0, 1))]
        assert modes(choose([demand("")], costs)) == [("merged", "", (0,))]


def test_what_cannot_be_mixed_has_its_own_turn():
    choice = choose([demand("a"), demand("dora", mixable=False), demand("b")], GPU)
    assert sorted(modes(choice)) == [("merged", "dora", (1,)), ("mixed", "", (0, 2))]
    held = choose([demand("a"), demand("dora", mixable=False), demand("b")], GPU, merged="dora")
    assert modes(held)[0] == ("merged", "dora", (1,))


def test_a_set_nobody_wants_any_more_is_taken_out_at_its_price():
    gone = Demand("old", 0, 0, rank=128, share=0.5)
    clean = choose([demand("")], CPU).seconds
    assert choose([demand("")], CPU, merged=gone).seconds == pytest.approx(clean + 0.5 * 0.05)


def test_small_sets_cost_less():
    for seconds in (GPU.merge_seconds, lambda rank, share: GPU.tax(rank, 4, share)):
        assert seconds(16, 0.4) == pytest.approx(0.4 * seconds(16, 1.0))
        assert seconds(4, 1.0) <= seconds(16, 1.0) < seconds(100, 1.0)


@pytest.mark.parametrize(
    "rows, seconds",
    [(1, 1.0), (0.5, 1.0), (8.5, 1.25), (16, 1.5), (32, 3.0), (33, 4.0), (48.5, 5.5)],
)
def test_steps_between_and_beyond_the_measured_ones(rows, seconds):
    assert GPU.step_seconds(rows) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "rank, sets, part", [(16, 2, 0.05), (16, 5, 0.08), (72, 2, 0.2), (128, 16, 0.8), (256, 8, 0.8)]
)
def test_taxes_between_and_beyond_the_measured_ones(rank, sets, part):
    assert GPU.tax(rank, sets, 1.0) == pytest.approx(part)


def seconds_step_by_step(phases: tuple[Phase, ...], demands: list[Demand], costs: Costs) -> float:
    """The choice's sum again: by one step after the other."""
    clock, held = 0.0, Demand("", 0, 0)
    for phase in phases:
        wanted = next((demands[i] for i in phase.members if phase.lora), Demand("", 0, 0))
        if wanted.lora != held.lora:
            clock += costs.merge_seconds(wanted.rank, wanted.share)
            clock += costs.merge_seconds(0, max(0.0, held.share - wanted.share))
        held = wanted
        left = {i: demands[i].steps for i in phase.members}
        while left:
            active = [demands[i] for i in left]
            second = costs.step_seconds(sum(d.rows for d in active))
            sets = {d.lora: d for d in active if d.lora}
            if phase.mode == "mixed" and sets:
                rank, share = max(d.rank for d in sets.values()), max(d.share for d in sets.values())
                second *= 1 + costs.tax(rank, len(sets), share)
            clock += second
            left = {i: steps - 1 for i, steps in left.items() if steps > 1}
    return clock


SETS = {
    name: {"rank": rank, "share": share, "mixable": mixable}
    for name, rank, share, mixable in (("a", 16, 1.0, True), ("b", 128, 0.4, True), ("c", 4, 0.1, False))
}
DEMANDS = st.lists(
    st.builds(
        lambda lora, rows, steps: Demand(lora, rows, steps, **SETS.get(lora, {})),
        st.sampled_from(["", "a", "b", "c"]),
        st.integers(1, 6),
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=7,
)


@given(demands=DEMANDS, costs=st.sampled_from([GPU, CPU]))
def test_the_sum_is_right_everybody_has_a_turn_and_the_shorter_way_is_taken(demands, costs):
    choice = choose(demands, costs)
    assert sorted(i for phase in choice.phases for i in phase.members) == list(range(len(demands)))
    assert choice.seconds == pytest.approx(seconds_step_by_step(choice.phases, demands, costs))
    assert 0 < choice.mean_seconds <= choice.seconds * (1 + 1e-9)
    for phase in choice.phases:
        assert phase.mode == "mixed" or {demands[i].lora for i in phase.members} == {phase.lora}
        assert phase.mode == "merged" or all(demands[i].mixable for i in phase.members)
    turns = [Demand(d.lora, d.rows, d.steps, d.rank, d.share, mixable=False) for d in demands]
    assert choice.seconds <= choose(turns, costs).seconds + 1e-9


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(InvalidParameter, match="demands"):
        choose([], GPU)
    with pytest.raises(InvalidParameter, match="merge"):
        Costs({1: 1.0}, {}, MIXED)


def test_a_table_survives_json():
    assert Costs.from_json(json.loads(json.dumps(GPU.to_json()))) == GPU
    with pytest.raises(InvalidParameter, match="version"):
        Costs.from_json({**GPU.to_json(), "version": 0})


def test_a_measured_table_serves_and_leaves_no_trace():
    unet, _ = samples.models()
    before = {name: t.clone() for name, t in unet.state_dict().items()}
    merger = LoraMerger(unet)
    mixed = MixedLoras(unet, merger.table)
    only_unet = tuple(name for name in samples.NAMES if name.startswith("unet"))
    lora = read_lora(samples.simple_lora(1, only_unet), merger.table)
    merger.set_adapters([(lora,)])
    held = merger.fingerprint()
    costs = measure(unet, merger, mixed, latent_size=(8, 8), rows=(1, 2), ranks=(4,), sets=(1, 2), tokens=7, repeats=1)
    assert costs.step.keys() == {1, 2}
    assert costs.merge.keys() == {0, 4}
    assert costs.mixed.keys() == {(4, 1), (4, 2)}
    assert all(value > 0 for value in (*costs.step.values(), *costs.merge.values()))
    assert all(part >= 0 for part in costs.mixed.values())
    assert merger.fingerprint() == held
    assert mixed.nbytes == 0
    assert not any(layer._forward_hooks for layer in unet.modules())
    merger.restore()
    assert all(torch.equal(t, before[name]) for name, t in unet.state_dict().items())
    rank, share = mixed.size_of((Adapter(lora),))
    assert (rank, 0 < share < 1) == (2, True)
    assert choose([Demand(held, 2, 5, rank, share), Demand("", 2, 5)], costs).seconds > 0
