"""A scheduler's configuration: diffusers' keys, complete, checked and frozen.

diffusers lets a config travel from one scheduler class to another (``Euler.from_config(pipe.scheduler.config)``), so
a config may carry keys of other members of the family. Those on `FAMILY_KEYS` are kept, unread, for the way back;
any other unknown key raises, because it would have been meant to change the picture.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from worker.engine.errors import InvalidParameter

CONFIG_NAME = "scheduler_config.json"
LAYOUT_VERSION = "0.42.1"  # the diffusers release whose layout `save` writes
# diffusers' own note of which keys nobody set: a class that takes the config over uses its own defaults for them.
DEFAULTS_NOTE = "_use_default_values"

FAMILY_KEYS = frozenset(
    {
        "algorithm_type",
        "beta_end",
        "beta_schedule",
        "beta_start",
        "clip_sample",
        "clip_sample_range",
        "disable_corrector",
        "dynamic_thresholding_ratio",
        "euler_at_final",
        "final_sigmas_type",
        "flow_shift",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "noise_sampler_seed",
        "num_train_timesteps",
        "original_inference_steps",
        "predict_x0",
        "prediction_type",
        "rescale_betas_zero_snr",
        "rho",
        "sample_max_value",
        "set_alpha_to_one",
        "shift_terminal",
        "sigma_data",
        "sigma_max",
        "sigma_min",
        "sigma_schedule",
        "skip_prk_steps",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "thresholding",
        "time_shift_type",
        "timestep_scaling",
        "timestep_spacing",
        "timestep_type",
        "trained_betas",
        "use_beta_sigmas",
        "use_dynamic_shifting",
        "use_exponential_sigmas",
        "use_flow_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    }
)


def _whole(low: int) -> Callable[[Any], str | None]:
    def rule(value: Any) -> str | None:
        good = isinstance(value, int) and not isinstance(value, bool) and value >= low
        return None if good else f"must be a whole number of at least {low}"

    return rule


def _number(low: float = -math.inf, high: float = math.inf) -> Callable[[Any], str | None]:
    def rule(value: Any) -> str | None:
        good = isinstance(value, Real) and not isinstance(value, bool) and low <= value <= high
        return None if good else f"must be a number between {low} and {high}"

    return rule


def _optional(rule: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    return lambda value: None if value is None else rule(value)


def _betas(value: Any) -> str | None:
    good = isinstance(value, tuple) and value and all(_number(0, 1)(beta) is None for beta in value)
    return None if good else "must be a list of numbers between 0 and 1"


def _steps(value: Any) -> str | None:
    return None if isinstance(value, tuple) and not any(map(_whole(0), value)) else "must be a list of step numbers"


def _seed(value: Any) -> str | None:
    seeds = value if isinstance(value, tuple) else (value,)
    return None if seeds and not any(map(_whole(0), seeds)) else "must be a whole number, or a list of them"


# What a key may hold, whichever class reads it. Keys absent here and not bool by default are the class's CHOICES.
_RULES: Mapping[str, Callable[[Any], str | None]] = {
    "num_train_timesteps": _whole(1),
    "beta_start": _number(0, 1),
    "beta_end": _number(0, 1),
    "trained_betas": _optional(_betas),
    "steps_offset": _whole(0),
    "clip_sample_range": _number(0),
    "dynamic_thresholding_ratio": _number(0, 1),
    "sample_max_value": _number(1),
    "sigma_min": _optional(_number(0)),
    "sigma_max": _optional(_number(0)),
    "flow_shift": _number(0),
    "shift_terminal": _optional(_number(0, 1)),
    "solver_order": _whole(1),
    "lambda_min_clipped": _number(),
    "disable_corrector": _steps,
    "noise_sampler_seed": _optional(_seed),
    "original_inference_steps": _whole(1),
    "timestep_scaling": _number(0),
}


class SchedulerConfig(Mapping[str, Any]):
    """Read-only mapping with attribute access: every key of its class, hidden keys of the family, `_class_name`.

    `given` names the keys that somebody set; the others hold their class's defaults.
    """

    __slots__ = ("_values", "given")

    def __init__(self, values: Mapping[str, Any], given: frozenset[str]):
        object.__setattr__(self, "_values", {key: _frozen(value) for key, value in values.items()})
        object.__setattr__(self, "given", given)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"this scheduler's config has no key {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a scheduler's config is frozen: make another with `from_config(config, key=value)`")

    def __reduce__(self) -> tuple[Any, ...]:
        return SchedulerConfig, (self._values, self.given)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._values.items(), key=lambda item: item[0])))

    def __repr__(self) -> str:
        return f"SchedulerConfig({self._values})"

    def given_values(self) -> dict[str, Any]:
        """What another class takes over: the keys somebody set, and hidden ones."""
        return {key: self._values[key] for key in self.given}

    def save(self, folder: str | Path) -> Path:
        """Write ``scheduler_config.json`` as diffusers lays it out; `folder` is made where it is missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        values = {"_diffusers_version": LAYOUT_VERSION, **self._values}
        path = folder / CONFIG_NAME
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        return path


def read_config(source: Mapping[str, Any] | str | Path) -> dict[str, Any]:
    """The keys somebody set in `source`: a mapping, a folder with scheduler_config.json, or that file.

    Raises InvalidParameter where there is no such file or it holds no JSON object.
    """
    if isinstance(source, SchedulerConfig):
        return {**source.given_values(), "_class_name": source["_class_name"]}
    if isinstance(source, Mapping):
        skipped = {DEFAULTS_NOTE, *source.get(DEFAULTS_NOTE, ())}
        return {key: value for key, value in source.items() if key not in skipped}
    path = Path(source)
    path = path / CONFIG_NAME if path.is_dir() else path
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidParameter("config", f"must name a folder with a readable {CONFIG_NAME}: {error}") from error
    if not isinstance(values, dict):
        raise InvalidParameter("config", f"must be a JSON object, and {path} holds none")
    return values


def complete_config(
    class_name: str,
    values: Mapping[str, Any],
    defaults: Mapping[str, Any],
    choices: Mapping[str, tuple[Any, ...]],
    aliases: Mapping[str, Mapping[str, str]],
) -> SchedulerConfig:
    """`values` checked, aliased and completed with a class's `defaults`.

    Raises InvalidParameter naming the key that is unknown or holds what the class does not do.
    """
    public = {key: value for key, value in values.items() if not key.startswith("_")}
    for key in public:
        if key not in FAMILY_KEYS:
            raise InvalidParameter(key, f"is no key of a scheduler's config: remove it, or see {class_name}'s keys")
    own = {key: _frozen(public.get(key, default)) for key, default in defaults.items()}
    for key, renamed in aliases.items():
        own[key] = renamed.get(own[key], own[key])
    for key, value in own.items():
        _check(class_name, key, value, defaults[key], choices.get(key))
    return SchedulerConfig({**public, **own, "_class_name": class_name}, frozenset(public))


def _check(class_name: str, key: str, value: Any, default: Any, choices: tuple[Any, ...] | None) -> None:
    if choices is not None:
        # By type too: True is no 1, and 2.0 no order.
        known = any(type(value) is type(choice) and value == choice for choice in choices)
        broken = None if known else f"must be one of {', '.join(map(repr, choices))} for {class_name}"
    elif isinstance(default, bool):
        broken = None if isinstance(value, bool) else "must be true or false"
    else:
        broken = _RULES[key](value)
    if broken:
        raise InvalidParameter(key, f"{broken}, not {value!r}")


def _frozen(value: Any) -> Any:
    """Lists and arrays as tuples, so that no one can change a config through them."""
    value = value.tolist() if hasattr(value, "tolist") else value
    return tuple(value) if isinstance(value, list) else value
