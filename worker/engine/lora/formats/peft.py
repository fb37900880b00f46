"""PEFT: `base_model.model.….lora_A[.adapter].weight`, and the config without which its scale is not known.

The config is the file `adapter_config.json` beside the weights, or JSON in the weights' own header under
`lora_adapter_metadata`, where diffusers writes it with the component before each name (`unet.lora_alpha`).
The scale is alpha ÷ r, or alpha ÷ √r for rank-stabilised LoRA (Kalajdzievski 2023, arXiv:2312.03732).
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from worker.engine.errors import LoraInvalid

LEAVES = {
    r"\.lora_A(\.[^.]+)?\.weight": "down",
    r"\.lora_B(\.[^.]+)?\.weight": "up",
    r"\.lora_magnitude_vector(\.[^.]+)?(\.weight)?": "magnitude",
}

METADATA_KEY = "lora_adapter_metadata"

# How the training went, which modules it chose and how they were initialised from random numbers: the tensors say it.
_HISTORY = {
    *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "rank_dropout"),
    *("module_dropout", "rank_dropout_scale", "megatron_core", "qalora_group_size", "runtime_config", "init_weights"),
    *("use_effective_conv2d", "decompose_both", "decompose_factor", "eva_config"),
}
_READ = {"peft_type", "r", "lora_alpha", "alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora"}
# These initialisations leave the base weights as they were; the others (PiSSA, OLoRA, CorDA, LoftQ) change them.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
_TYPES = ("LORA", "LOHA", "LOKR")


def stems(component: str, path: str) -> Iterator[str]:
    for form in dict.fromkeys((path, path.removeprefix("text_model."))):
        yield f"base_model.model.{form}"
        yield f"base_model.model.{component}.{form}"
        yield f"{component}.base_model.model.{form}"


Patterns = tuple[tuple[re.Pattern[str], float], ...]


@dataclass(frozen=True)
class AdapterConfig:
    """What of a PEFT config changes the arithmetic: alpha and rank, each with exceptions by a pattern of the path."""

    alpha: float
    rank: int
    alpha_pattern: Patterns = ()
    rank_pattern: Patterns = ()
    rslora: bool = False
    dora: bool = False

    def scale(self, path: str, rank: int | None) -> float:
        """alpha ÷ r for the module at `path`, whose tensors have `rank` (None where they do not tell it)."""
        wanted = _lookup(self.rank_pattern, path, self.rank)
        if rank is not None and rank != wanted:
            raise LoraInvalid(f"{path}: the adapter's config says rank {wanted}, its tensors have {rank}")
        return _lookup(self.alpha_pattern, path, self.alpha) / (math.sqrt(wanted) if self.rslora else wanted)


def read_configs(metadata: Mapping[str, str], config: Mapping[str, Any] | None) -> dict[str | None, AdapterConfig]:
    """The configs that come with a file, by component; under None the one for whatever component it holds."""
    if METADATA_KEY not in metadata:
        return {} if config is None else {None: _checked(config)}
    try:
        data = json.loads(metadata[METADATA_KEY])
    except (ValueError, RecursionError) as error:
        raise LoraInvalid(f"the LoRA's {METADATA_KEY} is no valid JSON: {error}") from error
    if not isinstance(data, dict):
        raise LoraInvalid(f"the LoRA's {METADATA_KEY} is not a JSON object")
    parts: dict[str | None, dict[str, Any]] = {}
    for key, value in data.items():
        component, dot, name = key.partition(".")
        parts.setdefault(component if dot else None, {})[name if dot else key] = value
    return {component: _checked(part) for component, part in parts.items()}


def _checked(config: Mapping[str, Any]) -> AdapterConfig:
    kind = config.get("peft_type", "LORA")
    if kind not in _TYPES:
        raise LoraInvalid(f"the adapter's config has peft_type {kind!r}; supported are {', '.join(_TYPES)}")
    if config.get("init_lora_weights") not in _PLAIN_INITS:
        raise LoraInvalid(
            f"the adapter was trained with init_lora_weights={config['init_lora_weights']!r}, which changes the base "
            "weights; convert it to a plain LoRA (PEFT: path_initial_model_for_weight_conversion) and save it again"
        )
    for key, value in config.items():
        known = key in _HISTORY or key in _READ or key == "init_lora_weights"
        if not known and value and (key, value) != ("bias", "none"):
            raise LoraInvalid(f"the adapter's config sets {key}={value!r}, which is not supported")
    alpha_key = "lora_alpha" if kind == "LORA" else "alpha"
    try:
        return AdapterConfig(
            alpha=_alpha(config[alpha_key]),
            rank=_rank(config["r"]),
            alpha_pattern=_patterns(config.get("alpha_pattern"), _alpha),
            rank_pattern=_patterns(config.get("rank_pattern"), _rank),
            rslora=bool(config.get("use_rslora")),
            dora=bool(config.get("use_dora")),
        )
    except KeyError as error:
        raise LoraInvalid(f"the adapter's config lacks {error.args[0]}") from error


def _alpha(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise LoraInvalid(f"the adapter's config has {value!r} for an alpha, which is no finite number")
    return float(value)


def _rank(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise LoraInvalid(f"the adapter's config has {value!r} for a rank, which is no positive integer")
    return value


# Enough for module paths and the wildcards people write; a stranger's pattern must not keep a worker busy for hours.
_SAFE_PATTERN = re.compile(r"[\w.\-^$|\\]*([*+][\w.\-^$|\\]*){0,3}", re.ASCII)


def _patterns(values: Any, checked: Callable[[Any], float]) -> Patterns:
    """PEFT's rule: a pattern matches the path's end, from the start of the path or of one of its parts."""
    if not isinstance(values or {}, Mapping):
        raise LoraInvalid(f"the adapter's config has {values!r} where patterns are due")
    compiled = []
    for pattern, value in (values or {}).items():
        if len(pattern) > 256 or not _SAFE_PATTERN.fullmatch(pattern):
            raise LoraInvalid(
                f"the adapter's config has the pattern {pattern[:80]!r}: use module paths with at most 3 wildcards"
            )
        try:
            compiled.append((re.compile(rf"(.*\.)?({pattern})$"), checked(value)))
        except re.error as error:
            raise LoraInvalid(f"the adapter's config has a pattern that is none: {pattern!r}") from error
    return tuple(compiled)


def _lookup(patterns: Patterns, path: str, default: float) -> float:
    forms = {path, path.removeprefix("text_model.")}
    return next((value for pattern, value in patterns if any(map(pattern.match, forms))), default)
