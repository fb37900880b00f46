"""Starting a run: diffusers' custom schedules, its rules for them, and no way into a state that cannot be walked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.engine.schedulers.grid import NAMES, settings
from tests.engine.schedulers.oracle import SHAPE, model, our_walk, pair, their_walk, worst
from worker.engine.errors import InvalidParameter
from worker.engine.schedulers import SCHEDULERS

TIMESTEPS = [981, 850, 736, 645, 545, 455, 343, 233, 124, 24]
SIGMAS = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.0]


def refusal_of(call, *args, **kwargs) -> str:
    with pytest.raises(InvalidParameter) as refusal:
        call(*args, **kwargs)
    return refusal.value.field


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize("name", [name for name in NAMES if "timesteps" in SCHEDULERS[name].CUSTOM])
def test_custom_timesteps(name, strength):
    if name == "HeunDiscreteScheduler" and strength < 1:
        # A second-order schedule is twice as long, and diffusers cuts the doubled length: 19 · 0.6 steps of two.
        strength = 0.9
    theirs, ours = pair(name, **settings(name))
    custom = {"timesteps": TIMESTEPS}
    assert worst(our_walk(ours, 0, strength, custom=custom), their_walk(theirs, 0, strength, custom=custom)) <= 1e-5


@pytest.mark.parametrize("changes", [{}, {"prediction_type": "v_prediction", "timestep_type": "continuous"}])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_custom_sigmas(changes, strength):
    theirs, ours = pair("EulerDiscreteScheduler", **settings("EulerDiscreteScheduler", **changes))
    custom = {"sigmas": SIGMAS}
    assert worst(our_walk(ours, 0, strength, custom=custom), their_walk(theirs, 0, strength, custom=custom)) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_custom_schedules_are_refused_where_diffusers_refuses_them(name):
    scheduler = SCHEDULERS[name]()
    for kind, values in (("timesteps", TIMESTEPS), ("sigmas", SIGMAS)):
        if kind in scheduler.CUSTOM:
            scheduler.start(**{kind: values})
        else:
            assert refusal_of(scheduler.start, **{kind: values}) == kind
    assert refusal_of(scheduler.start) == "num_inference_steps"
    assert refusal_of(scheduler.start, 5, timesteps=TIMESTEPS) == "timesteps"
    assert refusal_of(scheduler.start, timesteps=TIMESTEPS, sigmas=SIGMAS) == "sigmas"


PLACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        (name, key)
        for name in NAMES
        for key in PLACED
        if "timesteps" in SCHEDULERS[name].CUSTOM and key in SCHEDULERS[name].DEFAULTS
    ],
)
def test_placed_sigmas_leave_no_room_for_custom_timesteps(name, key):
    assert refusal_of(SCHEDULERS[name](**{key: True}).start, timesteps=TIMESTEPS) == "timesteps"


def test_continuous_timesteps_follow_from_sigmas_alone():
    scheduler = SCHEDULERS["EulerDiscreteScheduler"](timestep_type="continuous", prediction_type="v_prediction")
    assert refusal_of(scheduler.start, timesteps=TIMESTEPS) == "timesteps"


@pytest.mark.parametrize("bad", [[], [1000, 5], [5.0, -1], [math.nan], [[5, 3]], ["a"], [[1], 2], 7])
def test_timesteps_outside_training_are_refused(bad):
    for name in NAMES:
        if "timesteps" in SCHEDULERS[name].CUSTOM:
            assert refusal_of(SCHEDULERS[name]().start, timesteps=bad) == "timesteps"


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler"])
def test_rising_timesteps_are_refused_where_diffusers_refuses_them(name):
    for bad in ([5, 600], [600, 600, 5]):
        assert refusal_of(SCHEDULERS[name]().start, timesteps=bad) == "timesteps"


@pytest.mark.parametrize(
    "bad", [[], [3.0], [1.0, 2.0, 0.0], [3.0, math.inf, 0.0], [3.0, -1.0], [3.0, 3.0], ["a", "b"], 3.0]
)
def test_sigmas_that_do_not_fall_are_refused(bad):
    assert refusal_of(SCHEDULERS["EulerDiscreteScheduler"]().start, sigmas=bad) == "sigmas"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [0, -1, 2.5, "10", True])
def test_numbers_of_steps_that_are_none(name, bad):
    assert refusal_of(SCHEDULERS[name]().start, bad) == "num_inference_steps"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan, True, "1", 0.0, 0.05])
def test_strengths_that_leave_nothing_or_mean_nothing(name, bad):
    assert refusal_of(SCHEDULERS[name]().start, 10, strength=bad) == "strength"


@pytest.mark.parametrize(
    ("name", "config", "steps"),
    [
        ("DDIMScheduler", {}, 1001),
        ("DDPMScheduler", {}, 1001),
        ("PNDMScheduler", {"skip_prk_steps": True}, 1001),
        ("PNDMScheduler", {}, 3),
        ("LCMScheduler", {}, 51),
        ("DDIMScheduler", {"steps_offset": 1}, 1000),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading"}, 1001),
        ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}, 1000),
    ],
)
def test_more_steps_than_the_training_has_room_for(name, config, steps):
    assert refusal_of(SCHEDULERS[name](**config).start, steps) == "num_inference_steps"


def test_a_distillation_longer_than_the_training_is_refused():
    scheduler = SCHEDULERS["LCMScheduler"](original_inference_steps=1001)
    assert refusal_of(scheduler.start, 4) == "original_inference_steps"


@pytest.mark.parametrize("bad", [-1, 1.5, True, [1, -1], ["a"]])
def test_seeds_that_are_none(bad):
    assert refusal_of(SCHEDULERS["DPMSolverSDEScheduler"]().start, 4, seed=bad) == "seed"


@pytest.mark.parametrize("name", NAMES)
def test_steps_that_cannot_be_made(name):
    scheduler = SCHEDULERS[name]()
    state, sample = scheduler.start(4, seed=[1, 2, 3]), torch.zeros(SHAPE)
    wrong = torch.zeros(2, 4, 6, 7)
    assert refusal_of(scheduler.step, state, wrong, sample) == "model_output"
    field = "eta" if "eta" in scheduler.TAKES else None
    if field:
        for eta in (-0.1, 1.1, math.nan):
            assert refusal_of(scheduler.step, state, sample, sample, eta=eta) == "eta"
    if "variance_noise" not in scheduler.TAKES:
        assert refusal_of(scheduler.step, state, sample, sample, variance_noise=sample) == "variance_noise"
    else:
        both = {"variance_noise": sample, "generator": torch.Generator()}
        assert refusal_of(scheduler.step, state, sample, sample, **both) == "variance_noise"
    with pytest.raises(TypeError, match="s_chrun"):
        scheduler.step(state, sample, sample, s_chrun=1.0)
    if name == "DPMSolverSDEScheduler":
        assert refusal_of(scheduler.step, state, sample, sample) == "seed"
        state = scheduler.start(4, seed=1)
    while not scheduler.done(state):
        assert scheduler.remaining(state) == len(state.timesteps) - state.index
        state, sample, _ = scheduler.step(state, sample, sample)
    assert scheduler.remaining(state) == 0
    assert refusal_of(scheduler.step, state, sample, sample) == "state"
    assert refusal_of(scheduler.timestep, state) == "state"


@pytest.mark.parametrize("name", ["DDPMScheduler", "DPMSolverMultistepScheduler"])
def test_a_learned_variance_needs_its_channels(name):
    scheduler, sample = SCHEDULERS[name](variance_type="learned"), torch.zeros(SHAPE)
    assert refusal_of(scheduler.step, scheduler.start(4), sample, sample) == "model_output"


def test_too_few_generators():
    scheduler, sample = SCHEDULERS["EulerAncestralDiscreteScheduler"](), torch.zeros(3, 4, 6, 6)
    generators = [torch.Generator(), torch.Generator()]
    assert refusal_of(scheduler.step, scheduler.start(4), sample, sample, generator=generators) == "generator"


@pytest.mark.parametrize("bad", [0, 5, -1, 1.5])
def test_lms_orders_that_are_none(bad):
    scheduler, sample = SCHEDULERS["LMSDiscreteScheduler"](), torch.zeros(SHAPE)
    assert refusal_of(scheduler.step, scheduler.start(4), sample, sample, order=bad) == "order"


NUMBERS = st.one_of(st.integers(-3, 60), st.floats(-2, 80), st.none(), st.booleans())
SCHEDULES = st.one_of(st.none(), st.lists(st.integers(-5, 1100), max_size=6), st.lists(st.floats(-1, 20), max_size=6))


@hypothesis_settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    spacing=st.sampled_from(["linspace", "leading", "trailing"]),
    steps=NUMBERS,
    timesteps=SCHEDULES,
    sigmas=SCHEDULES,
    strength=st.one_of(st.just(1.0), st.floats(0, 1), st.floats()),
)
def test_a_start_is_refused_or_can_be_walked_to_the_end(name, spacing, steps, timesteps, sigmas, strength):
    defaults = SCHEDULERS[name].DEFAULTS
    scheduler = SCHEDULERS[name](**({"timestep_spacing": spacing} if "timestep_spacing" in defaults else {}))
    try:
        state = scheduler.start(steps, timesteps=timesteps, sigmas=sigmas, strength=strength, seed=1)
    except InvalidParameter as refusal:
        fields = ("num_inference_steps", "timesteps", "sigmas", "strength")
        assert refusal.field in fields and str(refusal).startswith(f"`{refusal.field}`")
        return
    walked = 0
    sample = torch.zeros(1, 1, 1, 1)
    while not scheduler.done(state):
        output = model(scheduler.model_input(state, sample), scheduler.timestep(state))
        state, sample, _ = scheduler.step(state, output, sample, generator=torch.Generator().manual_seed(0))
        walked += 1
    assert walked == len(state.schedule) == state.steps_done > 0
