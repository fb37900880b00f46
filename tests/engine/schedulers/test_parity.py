"""Number for number with diffusers: timesteps exactly, every sample, model input, re-noised image and x₀ on the way.

A test walks a whole list of cases and names the first ones that differ, since a thousand test items of milliseconds
each would cost more in pytest than in arithmetic.
"""

from collections.abc import Iterable
from typing import Any

import diffusers
import pytest
import torch

from tests.engine.schedulers.grid import NAMES, full_cases, quick_cases, settings
from tests.engine.schedulers.oracle import our_walk, pair, short_schedules, their_walk, worst
from worker.engine.errors import InvalidParameter
from worker.engine.schedulers import SCHEDULERS

# diffusers deprecates two algorithms, and torchsde warns of each query that touches an end, which ours never asks.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Should have")

# All but LMS are equal in every bit on the machines this was written on; the bound leaves room for another CPU's libm.
TOLERANCE = 1e-5
HALF_TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


def differences(name: str, cases: Iterable[tuple[dict[str, Any], int, float]], **walk: Any) -> list[str]:
    found = []
    for config, steps, strength in cases:
        if refused_by_both(name, config, steps):
            continue
        theirs, ours = pair(name, **config)
        error = worst(our_walk(ours, steps, strength, **walk), their_walk(theirs, steps, strength, **walk))
        if error > TOLERANCE:
            found.append(f"{error:.1e}: {config}, {steps} steps, strength {strength}")
    return found


def refused_by_both(name: str, config: dict[str, Any], steps: int) -> bool:
    """Runge-Kutta warm-up needs four steps; less is an error there and here."""
    if name != "PNDMScheduler" or config.get("skip_prk_steps") or steps >= 4:
        return False
    theirs, ours = pair(name, **config)
    with pytest.raises(ValueError, match="broadcast"):
        theirs.set_timesteps(steps)
    with pytest.raises(InvalidParameter, match="num_inference_steps"):
        ours.start(steps)
    return True


@pytest.mark.parametrize("name", NAMES)
def test_a_choice_of_everything(name):
    assert differences(name, quick_cases(name)) == []


@pytest.mark.full
@pytest.mark.parametrize("name", NAMES)
def test_everything_with_everything(name):
    assert differences(name, full_cases(name)) == []


@pytest.mark.parametrize("kind", ["list", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_noise_comes_from_each_kind_of_generator_as_in_diffusers(name, kind):
    config = settings(name) if kind == "list" else settings(name, **_global_seed(name))
    sde = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPMSolverM") else {}
    cases = [(config | sde, 5, 1.0), (config | sde, 10, 0.6)]
    cases = [(c | {"skip_prk_steps": True} if name == "PNDMScheduler" else c, *run) for c, *run in cases]
    assert differences(name, cases, generator=kind) == []


def _global_seed(name: str) -> dict[str, Any]:
    """Without a seed of its own the Brownian path takes one from torch's global generator."""
    return {"noise_sampler_seed": None} if name == "DPMSolverSDEScheduler" else {}


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("clipped", [False, True])
def test_ddim_noise_and_clipped_outputs(eta, clipped):
    config = settings("DDIMScheduler", clip_sample=True)
    assert differences("DDIMScheduler", [(config, 10, 0.6)], eta=eta, use_clipped_model_output=clipped) == []


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EulerDiscreteScheduler", {"s_churn": 5.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.01}),
        ("LMSDiscreteScheduler", {"order": 2}),
        ("DPMSolverSDEScheduler", {"s_noise": 0.8}),
    ],
)
def test_options_of_a_single_step(name, options):
    assert differences(name, [(settings(name), 10, 1.0), (settings(name), 10, 0.6)], **options) == []


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
def test_ddpm_with_a_predicted_variance(variance):
    theirs, ours = pair("DDPMScheduler", **settings("DDPMScheduler", variance_type=variance))
    theirs.set_timesteps(5)
    state = ours.start(5)
    ours_at = theirs_at = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    sources = [torch.Generator().manual_seed(1) for _ in range(2)]
    for t in theirs.timesteps:
        output = torch.cat([theirs_at.tanh(), theirs_at.sigmoid()], dim=1)
        theirs_at = theirs.step(output, t, theirs_at, generator=sources[0]).prev_sample
        state, ours_at, _ = ours.step(state, output, ours_at, generator=sources[1])
        torch.testing.assert_close(ours_at, theirs_at, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_ready_noise_takes_the_place_of_drawn(name):
    sde = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
    theirs, ours = pair(name, **settings(name, **sde))
    theirs.set_timesteps(5)
    state, t = ours.start(5), theirs.timesteps[0]
    output, sample, noise = torch.randn(3, 2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    eta = {"eta": 0.5} if name == "DDIMScheduler" else {}
    expected = theirs.step(output, t, sample, variance_noise=noise, **eta).prev_sample
    got = ours.step(state, output, sample, variance_noise=noise, **eta).sample
    torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_rounds_where_diffusers_rounds(name, dtype):
    extra = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    theirs, ours = pair(name, **settings(name, **extra))
    error = worst(our_walk(ours, 5, 1.0, dtype=dtype), their_walk(theirs, 5, 1.0, dtype=dtype))
    assert error <= HALF_TOLERANCE[dtype]


@pytest.mark.parametrize("steps", [61, 103])
def test_trailing_spacing_has_no_timestep_below_zero(steps):
    """diffusers adds one, by a rounding error: the one thing here that is deliberately not its equal."""
    theirs, ours = pair("DDIMScheduler", **settings("DDIMScheduler", timestep_spacing="trailing"))
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == [*ours.start(steps).timesteps.tolist(), -1]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
        ("KDPM2AncestralDiscreteScheduler", {"beta_schedule": "squaredcos_cap_v2"}),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}),
    ],
)
def test_a_picture_where_diffusers_makes_nan(name, config):
    theirs, ours = pair(name, **settings(name, **config))
    assert not their_walk(theirs, 5, 1.0).samples[-1].isfinite().all()
    assert our_walk(ours, 5, 1.0).samples[-1].isfinite().all()


def test_the_log_of_a_large_variance_is_the_same_variance():
    large, logged = (SCHEDULERS["DDPMScheduler"](variance_type=kind) for kind in ("fixed_large", "fixed_large_log"))
    assert worst(our_walk(logged, 5, 1.0), our_walk(large, 5, 1.0)) <= TOLERANCE


@pytest.mark.parametrize("placement", ["use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"])
@pytest.mark.parametrize("name", [name for name in NAMES if "use_beta_sigmas" in SCHEDULERS[name].DEFAULTS])
def test_the_ends_of_a_sisters_config_are_read_where_diffusers_reads_them(name, placement):
    """sigma_min and sigma_max are Euler's and UniPC's keys, and move the σ of (almost) every class that places them."""
    given = settings("EulerDiscreteScheduler", sigma_min=0.1, sigma_max=10.0, **{placement: True})
    cls = getattr(diffusers, name)
    with short_schedules(cls):
        theirs = cls.from_config(diffusers.EulerDiscreteScheduler(**given).config)
    ours = SCHEDULERS[name].from_config(SCHEDULERS["EulerDiscreteScheduler"](**given).config)
    torch.manual_seed(2)
    expected = their_walk(theirs, 6, 1.0)
    torch.manual_seed(2)
    assert worst(our_walk(ours, 6, 1.0), expected) <= TOLERANCE
