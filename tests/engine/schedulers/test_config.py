"""A scheduler's configuration is diffusers': same keys, same defaults, same file, same rules for changing class."""

import inspect
import itertools
import json
import math

import diffusers
import numpy as np
import pytest
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers

from tests.engine.schedulers.grid import NAMES, VARIANTS, settings
from tests.engine.schedulers.oracle import short_schedules
from worker.engine.errors import InvalidParameter
from worker.engine.schedulers import SCHEDULERS, SchedulerConfig, from_config
from worker.engine.schedulers.config import FAMILY_KEYS

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:Should have")

SD15 = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def their_keys(name: str) -> dict[str, object]:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    return {key: p.default for key, p in parameters.items() if key not in ("self", "kwargs")}


def plain(values) -> dict[str, object]:
    """As JSON has it, without private keys."""
    return json.loads(json.dumps({key: value for key, value in dict(values).items() if not key.startswith("_")}))


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_defaults_are_diffusers(name):
    assert plain(SCHEDULERS[name].DEFAULTS) == plain(their_keys(name))
    assert plain(SCHEDULERS[name]().config) == plain(their_keys(name))


def test_the_familys_keys_are_all_there_are():
    family = {*NAMES, *(member.name for member in KarrasDiffusionSchedulers)}
    assert frozenset(key for name in family for key in their_keys(name)) == FAMILY_KEYS


@pytest.mark.parametrize(("source", "target"), itertools.product(NAMES, NAMES))
def test_changing_class_takes_over_what_diffusers_takes_over(source, target):
    given = settings(source, **VARIANTS[source][-1])
    their_source, their_target = getattr(diffusers, source), getattr(diffusers, target)
    ours = SCHEDULERS[source](**given)
    with short_schedules(their_source), short_schedules(their_target):
        theirs = their_source(**given)
        try:
            expected = their_target.from_config(theirs.config)
        except (ValueError, NotImplementedError):
            for config in (ours.config, theirs.config):
                with pytest.raises(InvalidParameter):
                    SCHEDULERS[target].from_config(config)
            return
    own = SCHEDULERS[target].DEFAULTS.keys()
    for config in (ours.config, theirs.config, dict(theirs.config)):
        try:
            got = SCHEDULERS[target].from_config(config)
        except InvalidParameter as refusal:
            # Not refused by diffusers, but it has no arithmetic for it, either: it fails, or makes NaN.
            assert (refusal.field, given[refusal.field]) in (
                ("prediction_type", "sample"),
                ("solver_order", 4),
                ("lower_order_final", False),
            )
            return
        assert {key: plain(got.config)[key] for key in own} == {key: plain(expected.config)[key] for key in own}


def test_keys_of_another_class_are_kept_for_the_way_back():
    euler = SCHEDULERS["EulerDiscreteScheduler"].from_config(SD15)
    assert euler.config.skip_prk_steps is True and "skip_prk_steps" not in euler.settings
    back = SCHEDULERS["PNDMScheduler"].from_config(euler.config)
    assert back.settings["skip_prk_steps"] is True and back.settings["steps_offset"] == 1


def test_a_key_nobody_set_takes_the_new_classs_default():
    heun = from_config(SCHEDULERS["DDIMScheduler"](beta_end=0.013).config, _class_name="HeunDiscreteScheduler")
    assert (heun.config.beta_start, heun.config.beta_end) == (0.00085, 0.013)


def test_an_amended_config_does_not_hand_the_mend_on():
    ddim = SCHEDULERS["DDIMScheduler"]()
    mended = ddim.amended(steps_offset=1)
    assert (ddim.settings["steps_offset"], mended.settings["steps_offset"]) == (0, 1)
    assert SCHEDULERS["EulerDiscreteScheduler"].from_config(mended.config).settings["steps_offset"] == 0
    overridden = from_config(ddim.config, steps_offset=1)
    assert SCHEDULERS["EulerDiscreteScheduler"].from_config(overridden.config).settings["steps_offset"] == 1


@pytest.mark.parametrize("name", NAMES)
def test_the_file_goes_to_diffusers_and_back(name, tmp_path):
    scheduler = SCHEDULERS[name](**settings(name, **VARIANTS[name][-1]))
    scheduler.save_pretrained(tmp_path / "ours")
    with short_schedules(getattr(diffusers, name)):
        theirs = getattr(diffusers, name).from_pretrained(tmp_path / "ours")
    assert plain(theirs.config) == plain(scheduler.config)
    theirs.save_pretrained(tmp_path / "theirs")
    ours, again = ((tmp_path / side / "scheduler_config.json").read_text() for side in ("ours", "theirs"))
    assert json.loads(ours) == json.loads(again)
    for source in (tmp_path / "theirs", str(tmp_path / "theirs"), tmp_path / "theirs" / "scheduler_config.json"):
        loaded = from_config(source)
        assert type(loaded) is type(scheduler) and plain(loaded.config) == plain(scheduler.config)
    assert SCHEDULERS[name].from_pretrained(tmp_path, subfolder="theirs") == loaded


def test_a_config_reads_as_a_mapping_and_by_attribute():
    config = from_config(SD15, trained_betas=np.full(1000, 0.001)).config
    assert isinstance(config, SchedulerConfig)
    assert config["beta_end"] == config.beta_end == config.get("beta_end") == 0.012
    assert config._class_name == "PNDMScheduler" and config.timestep_spacing == "leading"
    assert config.trained_betas == (0.001,) * 1000
    with pytest.raises(AttributeError, match="no key 'flow'"):
        _ = config.flow
    with pytest.raises(TypeError):
        config["beta_end"] = 1


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({**SD15, "_class_name": "FlowMatchEulerDiscreteScheduler"}, "_class_name"),
        ({key: value for key, value in SD15.items() if key != "_class_name"}, "_class_name"),
        ({**SD15, "_class_name": ["PNDMScheduler"]}, "_class_name"),
        ({**SD15, "beta_stop": 0.1}, "beta_stop"),
        ({**SD15, "use_dynamic_thresholding": True}, "use_dynamic_thresholding"),
        ("/nowhere/at/all", "config"),
    ],
)
def test_what_is_no_config_is_refused_by_name(config, field):
    with pytest.raises(InvalidParameter) as refusal:
        from_config(config)
    assert refusal.value.field == field


def test_a_broken_file_is_refused(tmp_path):
    for text in ("{", "[1, 2]", "\udc80"):
        (tmp_path / "scheduler_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(InvalidParameter, match="config"):
            from_config(tmp_path)


BAD_VALUES = [
    ("beta_schedule", "cosine"),
    ("prediction_type", "noise"),
    ("timestep_spacing", "even"),
    ("num_train_timesteps", 0),
    ("num_train_timesteps", 1000.0),
    ("num_train_timesteps", True),
    ("beta_start", "0.1"),
    ("beta_start", -0.1),
    ("beta_end", math.nan),
    ("beta_end", 1.5),
    ("trained_betas", []),
    ("trained_betas", [0.1, math.inf]),
    ("trained_betas", [0.1] * 999),
    ("steps_offset", -1),
    ("clip_sample", 1),
    ("clip_sample_range", "wide"),
    ("thresholding", None),
    ("dynamic_thresholding_ratio", 1.1),
    ("sample_max_value", 0.5),
    ("set_alpha_to_one", "yes"),
    ("variance_type", "free"),
    ("interpolation_type", "cubic"),
    ("timestep_type", "whole"),
    ("final_sigmas_type", "one"),
    ("sigma_min", -1),
    ("use_karras_sigmas", None),
    ("use_flow_sigmas", True),
    ("use_dynamic_shifting", True),
    ("shift_terminal", 0.1),
    ("solver_p", "DDIMScheduler"),
    ("solver_order", 0),
    ("solver_order", 2.0),
    ("algorithm_type", "dpm"),
    ("solver_type", "euler"),
    ("disable_corrector", [-1]),
    ("disable_corrector", 3),
    ("lambda_min_clipped", math.nan),
    ("noise_sampler_seed", -3),
    ("noise_sampler_seed", []),
    ("original_inference_steps", 0),
    ("timestep_scaling", -1),
]


@pytest.mark.parametrize(("key", "value"), BAD_VALUES)
def test_each_class_refuses_a_value_it_has_no_arithmetic_for(key, value):
    readers = [name for name in NAMES if key in SCHEDULERS[name].DEFAULTS]
    assert readers
    for name in readers:
        with pytest.raises(InvalidParameter) as refusal:
            SCHEDULERS[name](**{key: value})
        assert refusal.value.field == key and repr(key)[1:-1] in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "config", "field"),
    [
        ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("KDPM2DiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("KDPM2AncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("DPMSolverSDEScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("PNDMScheduler", {"prediction_type": "sample"}, "prediction_type"),
        ("DPMSolverMultistepScheduler", {"prediction_type": "flow_prediction"}, "prediction_type"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver"}, "final_sigmas_type"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "deis"}, "final_sigmas_type"),
        ("DPMSolverMultistepScheduler", {"solver_order": 4}, "solver_order"),
        ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver"}, "algorithm_type"),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
            "solver_order",
        ),
        ("DEISMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "algorithm_type"),
        ("UniPCMultistepScheduler", {"lower_order_final": False}, "lower_order_final"),
        *[
            (name, {"use_karras_sigmas": True, "use_beta_sigmas": True}, "use_beta_sigmas")
            for name in NAMES
            if "use_beta_sigmas" in SCHEDULERS[name].DEFAULTS
        ],
    ],
)
def test_combinations_that_cannot_work_are_refused(name, config, field):
    with pytest.raises(InvalidParameter) as refusal:
        SCHEDULERS[name](**config)
    assert refusal.value.field == field


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("DEISMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_type": "heun"}, ("deis", "logrho")),
        (
            "DPMSolverMultistepScheduler",
            {"algorithm_type": "deis", "solver_type": "bh2", "final_sigmas_type": "sigma_min"},
            ("dpmsolver++", "midpoint"),
        ),
        ("UniPCMultistepScheduler", {"solver_type": "logrho"}, (None, "bh2")),
    ],
)
def test_a_sisters_solver_means_ones_own(name, given, meant):
    config = SCHEDULERS[name](**given).config
    assert (config.get("algorithm_type"), config["solver_type"]) == meant
