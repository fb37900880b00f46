"""What a scheduler is: a frozen recipe that takes a denoising run from one state to the next.

A run goes ``start → (model_input → model → step)* → done``. Everything that changes is in the `SchedulerState`, so
one scheduler serves any number of runs at once, and a run can be saved in the middle and resumed elsewhere.

    scheduler = from_config("…/scheduler")
    state = scheduler.start(30, strength=0.6)
    latents = scheduler.add_noise(state, image_latents, noise)
    while not scheduler.done(state):
        output = unet(scheduler.model_input(state, latents), scheduler.timestep(state), …)
        state, latents, _ = scheduler.step(state, output, latents, generator=generator)
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch

from worker.engine.errors import InvalidParameter
from worker.engine.noise import Generators, randn_tensor
from worker.engine.schedulers.config import SchedulerConfig, complete_config, read_config
from worker.engine.schedulers.state import SchedulerState

EXCLUSIVE_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


class StepOutput(NamedTuple):
    """One step's answer. `pred_original_sample` is None where the scheduler does not compute it anyway."""

    state: SchedulerState
    sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


@dataclass(frozen=True)
class Timetable:
    """A whole schedule before `strength` cuts it: timesteps ``[T]``, and tables of noise levels by name."""

    timesteps: np.ndarray | torch.Tensor
    tables: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class NoiseSource:
    """Where a step takes its randomness from: a generator, one for each image, torch's own, or a ready tensor."""

    generator: Generators
    ready: torch.Tensor | None

    def like(self, tensor: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Standard normal noise of `tensor`'s shape and device, in `dtype` (`tensor`'s own where None)."""
        if self.ready is not None:
            return self.ready.to(tensor.device, dtype)
        return randn_tensor(tensor.shape, self.generator, tensor.device, dtype or tensor.dtype)


class Scheduler(ABC):
    """Base of all schedulers. A subclass is data (its keys, their choices) and two pieces of maths."""

    DEFAULTS: ClassVar[Mapping[str, Any]]
    """The class's config keys, diffusers' names, with diffusers' defaults."""
    CHOICES: ClassVar[Mapping[str, tuple[Any, ...]]]
    """Keys that hold one of a few values."""
    ALIASES: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Values of sister classes' configs that mean one of this class's own, by key."""
    CUSTOM: ClassVar[frozenset[str]] = frozenset()
    """What `start` takes in the place of a number of steps: "timesteps", "sigmas"."""
    TAKES: ClassVar[frozenset[str]] = frozenset()
    """Which of `step`'s "eta" and "variance_noise" have meaning here."""
    order: ClassVar[int] = 1
    """Model evaluations a step."""

    config: SchedulerConfig
    settings: Mapping[str, Any]
    """The config's keys that this class reads, without the hidden ones of its family."""

    def __init__(self, **values: Any):
        """Keys of `DEFAULTS` by name; raises InvalidParameter naming the key that is unknown or out of range."""
        config = complete_config(type(self).__name__, values, self.DEFAULTS, self.CHOICES, self.ALIASES)
        settings = MappingProxyType({key: config[key] for key in self.DEFAULTS})
        object.__setattr__(self, "config", config)
        object.__setattr__(self, "settings", settings)
        self._refuse(values)
        for name, table in self._constants().items():
            object.__setattr__(self, name, table)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a scheduler is frozen: make another with `from_config(config, {name}=…)`")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.config == other.config

    def __hash__(self) -> int:
        return hash((type(self), self.config))

    def __repr__(self) -> str:
        given = ", ".join(f"{key}={self.config[key]!r}" for key in sorted(self.config.given))
        return f"{type(self).__name__}({given})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), dict(self.config), self.config.given)

    # -- making one -------------------------------------------------------------------------------------------------

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | str | Path, **overrides: Any) -> Self:
        """A scheduler of this class from any family member's config: a mapping, or a folder or file on disk.

        Keys nobody set in a sister's config take this class's defaults, as in diffusers.
        Raises InvalidParameter naming the key that is unknown or holds what this class does not do.
        """
        values = {**read_config(config), **overrides}
        return cls(**{key: value for key, value in values.items() if not key.startswith("_")})

    @classmethod
    def from_pretrained(cls, path: str | Path, subfolder: str | None = None, **overrides: Any) -> Self:
        """`from_config` of a checkpoint folder on disk, or of its `subfolder`."""
        return cls.from_config(Path(path) / subfolder if subfolder else Path(path), **overrides)

    def amended(self, **values: Any) -> Self:
        """A copy with `values` changed and the record of what was given unchanged: how diffusers' pipelines mend an
        outdated config (``steps_offset``, ``skip_prk_steps``) without handing the mend on to another class.
        """
        return _rebuild(type(self), {**self.config, **values}, self.config.given)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write ``scheduler_config.json`` into `folder`, as diffusers lays it out."""
        self.config.save(folder)

    # -- a run ------------------------------------------------------------------------------------------------------

    def start(
        self,
        num_inference_steps: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        strength: float = 1.0,
        device: torch.device | str | None = None,
        seed: int | Sequence[int] | None = None,
    ) -> SchedulerState:
        """The state before the first step of a run.

        Exactly one of `num_inference_steps` (≥ 1), `timesteps` and `sigmas` is given; the latter two only where the
        class takes them. `strength` in 0..1 leaves out the noisy part of the schedule, as diffusers' inpaint pipeline
        does: of n steps the last ``int(n · strength)`` are walked. `seed` feeds the Brownian path of the classes that
        have one (one seed for the batch, or one an image) and nothing else.

        Raises InvalidParameter for anything else, and when no step would be left.
        """
        steps = self._count_steps(num_inference_steps, timesteps, sigmas)
        if isinstance(strength, bool) or not isinstance(strength, Real) or not 0.0 <= strength <= 1.0:
            raise InvalidParameter("strength", f"must be between 0 and 1, not {strength!r}")
        timetable = self._timetable(steps, timesteps, sigmas)
        whole = torch.as_tensor(timetable.timesteps).cpu()
        if timesteps is not None or sigmas is not None:
            steps = len(whole)
        kept = min(int(steps * strength), steps)
        begin = (steps - kept) * self.order
        if kept < 1 or begin >= len(whole):
            raise InvalidParameter("strength", f"of {strength} leaves none of {steps} steps: raise one of the two")
        return SchedulerState(
            scheduler=type(self).__name__,
            timesteps=whole,
            index=begin,
            begin_index=begin,
            num_inference_steps=steps,
            tables=MappingProxyType(dict(timetable.tables)),
            device=torch.device(device or "cpu"),
            seed=self._seeds(seed),
        )

    def done(self, state: SchedulerState) -> bool:
        return state.index >= len(state.timesteps)

    def remaining(self, state: SchedulerState) -> int:
        """Model evaluations still to come."""
        return len(state.timesteps) - state.index

    def timestep(self, state: SchedulerState) -> torch.Tensor:
        """What the model is told: a 0-d tensor on the state's device, whole or fractional as the class has it."""
        self._require_step(state)
        return state.timesteps[state.index].to(state.device)

    def step(
        self,
        state: SchedulerState,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        *,
        generator: Generators = None,
        eta: float = 0.0,
        variance_noise: torch.Tensor | None = None,
        **options: Any,
    ) -> StepOutput:
        """One model evaluation further: ``model_output`` and ``sample`` are ``[B, C, h, w]``, rows independent.

        `generator` (one, or a list with one an image) feeds whatever noise the class adds; `eta` matters to DDIM
        alone, as in diffusers. `variance_noise` replaces drawn noise where the class takes it. `options` are the
        class's own, documented in its file.

        Raises InvalidParameter for a finished or foreign state, and for tensors that do not fit each other.
        """
        self._require_step(state)
        if variance_noise is not None and "variance_noise" not in self.TAKES:
            raise InvalidParameter("variance_noise", f"has no meaning for {type(self).__name__}: leave it out")
        if variance_noise is not None and generator is not None:
            raise InvalidParameter("variance_noise", "cannot be given together with `generator`: choose one")
        self._check_shapes(model_output, sample)
        if "eta" in self.TAKES:
            options["eta"] = eta
        return self._advance(state, model_output, sample, NoiseSource(generator, variance_noise), **options)

    @abstractmethod
    def init_noise_sigma(self, state: SchedulerState) -> torch.Tensor | float:
        """What pure standard normal noise is multiplied with at the start of the run."""

    @abstractmethod
    def model_input(self, state: SchedulerState, sample: torch.Tensor) -> torch.Tensor:
        """`sample` as the model wants it (diffusers' ``scale_model_input``)."""

    @abstractmethod
    def add_noise(
        self,
        state: SchedulerState,
        original: torch.Tensor,
        noise: torch.Tensor,
        timestep: torch.Tensor | float | None = None,
    ) -> torch.Tensor:
        """`original` with `noise` at the level of `timestep`, or of the state's own next timestep where None."""

    # -- what a class fills in ----------------------------------------------------------------------------------------

    def _refuse(self, values: Mapping[str, Any]) -> None:
        """Raise InvalidParameter for combinations of keys the class does not do; `values` are as they were given."""
        chosen = [key for key in EXCLUSIVE_SIGMAS if self.settings.get(key)]
        if len(chosen) > 1:
            raise InvalidParameter(chosen[1], f"excludes {chosen[0]}: only one of {EXCLUSIVE_SIGMAS} can be used")

    @abstractmethod
    def _constants(self) -> Mapping[str, torch.Tensor]:
        """Tensors computed once from the settings, by attribute name."""

    @abstractmethod
    def _timetable(
        self, steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None
    ) -> Timetable: ...

    @abstractmethod
    def _advance(
        self,
        state: SchedulerState,
        model_output: torch.Tensor,
        sample: torch.Tensor,
        noise: NoiseSource,
        **options: Any,
    ) -> StepOutput: ...

    def _seeds(self, seed: int | Sequence[int] | None) -> tuple[int, ...]:
        return ()

    def _check_shapes(self, model_output: torch.Tensor, sample: torch.Tensor) -> None:
        if model_output.shape != sample.shape:
            shapes = f"{tuple(model_output.shape)} and {tuple(sample.shape)}"
            raise InvalidParameter("model_output", f"must have the sample's shape: they are {shapes}")

    # -- checks -------------------------------------------------------------------------------------------------------

    def _count_steps(self, steps: int | None, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> int:
        given = {"num_inference_steps": steps, "timesteps": timesteps, "sigmas": sigmas}
        named = [name for name, value in given.items() if value is not None]
        if len(named) != 1:
            rule = f"is one of num_inference_steps, timesteps and sigmas, and exactly one must be given, not {named}"
            raise InvalidParameter(named[-1] if named else "num_inference_steps", rule)
        if steps is None:
            if named[0] not in self.CUSTOM:
                raise InvalidParameter(named[0], f"cannot be chosen for {type(self).__name__}: give a number of steps")
            if not hasattr(given[named[0]], "__len__"):
                raise InvalidParameter(named[0], f"must be a list of numbers, not {given[named[0]]!r}")
            return len(given[named[0]])
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise InvalidParameter("num_inference_steps", f"must be a whole number of at least 1, not {steps!r}")
        return steps

    def _require_step(self, state: SchedulerState) -> None:
        if state.scheduler != type(self).__name__:
            raise InvalidParameter("state", f"belongs to {state.scheduler}, not to {type(self).__name__}")
        if self.done(state):
            raise InvalidParameter("state", "has no step left: start another run")


def _rebuild(cls: type[Any], values: Mapping[str, Any], given: frozenset[str]) -> Any:
    scheduler = cls(**{key: value for key, value in values.items() if not key.startswith("_")})
    object.__setattr__(scheduler, "config", SchedulerConfig(scheduler.config, given))
    return scheduler
