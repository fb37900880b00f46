"""A run is a value: it can be stepped twice, interleaved with others, cut into rows, saved and resumed."""

import copy
import json
import pickle
import warnings

import pytest
import safetensors.torch
import torch

from tests.engine.schedulers.grid import NAMES, settings
from tests.engine.schedulers.oracle import SHAPE, error, model, our_walk, pair, their_walk, worst
from worker.engine.errors import InvalidParameter
from worker.engine.schedulers import SCHEDULERS, SchedulerState, from_config

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Should have")

# The interesting state each class can carry: third order, Runge-Kutta warm-up, fresh noise, a corrector.
RICH = {
    "PNDMScheduler": [{"skip_prk_steps": True}, {"skip_prk_steps": False}],
    "DPMSolverMultistepScheduler": [{"solver_order": 3, "algorithm_type": "sde-dpmsolver++"}],
    "DPMSolverSinglestepScheduler": [{"solver_order": 3}],
    "DEISMultistepScheduler": [{"solver_order": 3}],
    "UniPCMultistepScheduler": [{"solver_order": 3}],
}
CASES = [(name, variant) for name in NAMES for variant in RICH.get(name, [{}])]


def made(name, variant):
    return SCHEDULERS[name](**settings(name, **variant))


def through_a_file(state: SchedulerState) -> SchedulerState:
    tensors = safetensors.torch.load(safetensors.torch.save(state.tensors()))
    return SchedulerState.restore(tensors, json.loads(json.dumps(state.scalars())))


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_run_saved_before_any_step_goes_on_bit_for_bit(name, variant, strength):
    scheduler = made(name, variant)
    whole = our_walk(scheduler, 7, strength).samples
    for cut in range(len(whole)):
        resumed = our_walk(
            scheduler, 7, strength, before_step=lambda s, k=cut: through_a_file(s) if k == s.steps_done else s
        )
        assert all(map(torch.equal, resumed.samples, whole)), f"cut before step {cut}"


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_step_leaves_its_state_and_its_inputs_alone(name, variant):
    scheduler = made(name, variant)
    state = scheduler.start(7, strength=0.9, seed=5)
    source, sample = torch.Generator().manual_seed(0), torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    while not scheduler.done(state):
        before, position = (state.tensors(), state.scalars()), source.get_state()
        output = model(scheduler.model_input(state, sample), scheduler.timestep(state))
        kept = sample.clone(), output.clone()
        after, following, _ = scheduler.step(state, output, sample, generator=source)
        assert state.scalars() == before[1]
        assert all(torch.equal(tensor, before[0][key]) for key, tensor in state.tensors().items())
        assert torch.equal(sample, kept[0]) and torch.equal(output, kept[1])
        again = scheduler.step(state, output, sample, generator=torch.Generator().set_state(position))
        assert torch.equal(again.sample, following) and again.state.scalars() == after.scalars()
        state, sample = after, following


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_interleaved_runs_do_not_touch_each_other(name, variant):
    """One scheduler, a second whole run inside each step of the first."""
    scheduler = made(name, variant)
    alone = our_walk(scheduler, 6, 1.0).samples

    def disturb(state):
        our_walk(scheduler, 4, 0.8)
        return state

    assert all(map(torch.equal, our_walk(scheduler, 6, 1.0, before_step=disturb).samples, alone))


@pytest.mark.parametrize(("name", "variant"), CASES)
def test_each_row_is_what_it_would_be_alone(name, variant):
    scheduler = made(
        name, {**variant, **({"thresholding": True} if "thresholding" in SCHEDULERS[name].DEFAULTS else {})}
    )
    together, alone = [], []
    rows = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    for part, seeds, kept in [(rows, [3, 4], together), *((rows[k : k + 1], [3 + k], alone) for k in range(2))]:
        state, sources = scheduler.start(6, seed=seeds), [torch.Generator().manual_seed(seed) for seed in seeds]
        while not scheduler.done(state):
            output = model(scheduler.model_input(state, part), scheduler.timestep(state))
            state, part, _ = scheduler.step(state, output, part, generator=sources)
        kept.append(part)
    assert error(torch.cat(alone), together[0]) <= 1e-6


def test_a_seed_an_image_is_diffusers_list_of_seeds():
    config = settings("DPMSolverSDEScheduler") | {"noise_sampler_seed": [5, 6]}
    theirs, ours = pair("DPMSolverSDEScheduler", **config)
    expected = their_walk(theirs, 6, 1.0)
    assert worst(our_walk(ours, 6, 1.0), expected) <= 1e-5
    seedless = SCHEDULERS["DPMSolverSDEScheduler"](**settings("DPMSolverSDEScheduler"))
    assert worst(our_walk(seedless, 6, 1.0, seed=[5, 6]), expected) <= 1e-5


def test_an_unseeded_brownian_path_is_the_same_for_the_whole_run_and_noted():
    scheduler = SCHEDULERS["DPMSolverSDEScheduler"]()
    state = scheduler.start(3)
    assert state.seed == ()
    sample = torch.zeros(SHAPE)
    first = scheduler.step(state, sample, sample).state
    assert len(first.seed) == 1
    assert scheduler.step(first, sample, sample).state.seed == first.seed


def test_the_brownian_path_warns_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for karras in (True, False):
            our_walk(
                SCHEDULERS["DPMSolverSDEScheduler"](**settings("DPMSolverSDEScheduler", use_karras_sigmas=karras)),
                6,
                1.0,
            )


@pytest.mark.parametrize("name", NAMES)
def test_a_scheduler_is_frozen_and_a_value(name):
    scheduler = SCHEDULERS[name](**settings(name))
    with pytest.raises(AttributeError, match="frozen"):
        scheduler.order = 3
    with pytest.raises(AttributeError, match="frozen"):
        scheduler.config.beta_end = 0.5
    for twin in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), from_config(scheduler.config)):
        assert twin == scheduler and hash(twin) == hash(scheduler) and twin.config.given == scheduler.config.given
    assert scheduler != SCHEDULERS[name](**settings(name, beta_end=0.013))


def test_what_is_no_saved_state_is_refused():
    state = SCHEDULERS["EulerDiscreteScheduler"]().start(3)
    tensors, scalars = state.tensors(), state.scalars()
    with pytest.raises(InvalidParameter, match="scalars"):
        SchedulerState.restore(tensors, {key: value for key, value in scalars.items() if key != "index"})
    with pytest.raises(InvalidParameter, match="scalars"):
        SchedulerState.restore(tensors, {**scalars, "extra": 1})
    with pytest.raises(InvalidParameter, match=r"strange"):
        SchedulerState.restore({**tensors, "strange": torch.zeros(1)}, scalars)
    with pytest.raises(InvalidParameter, match=r"history\.1"):
        SchedulerState.restore({**tensors, "history.1": torch.zeros(1)}, scalars)
    with pytest.raises(InvalidParameter, match="scalars"):
        SchedulerState.restore({}, scalars)


def test_a_state_belongs_to_its_scheduler():
    state = SCHEDULERS["EulerDiscreteScheduler"]().start(3)
    other = SCHEDULERS["EulerAncestralDiscreteScheduler"]()
    sample = torch.zeros(SHAPE)
    with pytest.raises(InvalidParameter, match="belongs to EulerDiscreteScheduler"):
        other.step(state, sample, sample)
    with pytest.raises(InvalidParameter, match="belongs to EulerDiscreteScheduler"):
        other.timestep(state)
