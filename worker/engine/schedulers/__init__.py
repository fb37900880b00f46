"""Noise schedulers under diffusers' names, without mutable state: `from_config` makes one, `base.py` says the rest."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from worker.engine.errors import InvalidParameter
from worker.engine.schedulers.base import Scheduler, StepOutput
from worker.engine.schedulers.config import SchedulerConfig, read_config
from worker.engine.schedulers.ddim import DDIMScheduler
from worker.engine.schedulers.ddpm import DDPMScheduler
from worker.engine.schedulers.deis import DEISMultistepScheduler
from worker.engine.schedulers.dpmsolver_multistep import DPMSolverMultistepScheduler
from worker.engine.schedulers.dpmsolver_sde import DPMSolverSDEScheduler
from worker.engine.schedulers.dpmsolver_singlestep import DPMSolverSinglestepScheduler
from worker.engine.schedulers.euler import EulerDiscreteScheduler
from worker.engine.schedulers.euler_ancestral import EulerAncestralDiscreteScheduler
from worker.engine.schedulers.heun import HeunDiscreteScheduler
from worker.engine.schedulers.kdpm2 import KDPM2DiscreteScheduler
from worker.engine.schedulers.kdpm2_ancestral import KDPM2AncestralDiscreteScheduler
from worker.engine.schedulers.lcm import LCMScheduler
from worker.engine.schedulers.lms import LMSDiscreteScheduler
from worker.engine.schedulers.pndm import PNDMScheduler
from worker.engine.schedulers.state import SchedulerState
from worker.engine.schedulers.unipc import UniPCMultistepScheduler

SCHEDULERS: Mapping[str, type[Scheduler]] = {
    cls.__name__: cls
    for cls in (
        DDIMScheduler,
        DDPMScheduler,
        DEISMultistepScheduler,
        DPMSolverMultistepScheduler,
        DPMSolverSDEScheduler,
        DPMSolverSinglestepScheduler,
        EulerDiscreteScheduler,
        EulerAncestralDiscreteScheduler,
        HeunDiscreteScheduler,
        KDPM2DiscreteScheduler,
        KDPM2AncestralDiscreteScheduler,
        LCMScheduler,
        LMSDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )
}


def scheduler_class(name: str) -> type[Scheduler]:
    """The class that a config's ``_class_name`` means. Raises InvalidParameter for one there is none of."""
    try:
        return SCHEDULERS[name]
    except (KeyError, TypeError):
        raise InvalidParameter("_class_name", f"must be one of {', '.join(SCHEDULERS)}, not {name!r}") from None


def from_config(config: Mapping[str, Any] | str | Path, **overrides: Any) -> Scheduler:
    """The scheduler that a config describes: a mapping, a folder with scheduler_config.json, or that file.

    ``_class_name`` among the overrides switches to another class of the family.
    Raises InvalidParameter naming the key that is unknown or holds what the class does not do.
    """
    name = overrides.pop("_class_name", None) or read_config(config).get("_class_name")
    return scheduler_class(name).from_config(config, **overrides)


__all__ = [
    "SCHEDULERS",
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "Scheduler",
    "SchedulerConfig",
    "SchedulerState",
    "StepOutput",
    "UniPCMultistepScheduler",
    "from_config",
    "scheduler_class",
]
