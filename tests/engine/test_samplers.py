"""Every scheduler a job can name exists, is the class its name says, and keeps the checkpoint's noise schedule."""

from typing import get_args

import pytest

from farm.schemas import SchedulerName
from worker.engine.schedulers import from_config
from worker.samplers import SAMPLERS, sampler

CHECKPOINT = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "skip_prk_steps": True,
    "set_alpha_to_one": False,
}


def test_the_schema_and_the_table_agree():
    assert set(get_args(SchedulerName)) == {"model", *SAMPLERS}


@pytest.mark.parametrize("name", get_args(SchedulerName))
def test_a_named_scheduler_can_be_started(name):
    own = from_config(CHECKPOINT)
    scheduler = sampler(name, own)
    assert scheduler.config["beta_schedule"] == "scaled_linear"
    assert scheduler.config["beta_end"] == 0.012
    assert type(scheduler).__name__ == (SAMPLERS[name][0] if name != "model" else "PNDMScheduler")
    assert not scheduler.done(scheduler.start(4, seed=0))
