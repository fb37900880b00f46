"""A model's configuration: read strictly from `config.json`, frozen, with attribute access.

Each model lists the keys it understands as a table of `Field`s. A key outside the table, or a value the field does
not allow, would change the arithmetic in a way we do not reproduce, so it raises and names the key; a key that is
absent takes the default that diffusers gives it.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.engine.errors import CheckpointInvalid

# What diffusers' EMAModel writes beside the model it saves: how the average was taken, nothing about the model.
_EMA_NOTES = frozenset(
    {"decay", "inv_gamma", "min_decay", "optimization_step", "power", "update_after_step", "use_ema_warmup"}
)


@dataclass(frozen=True)
class Field:
    """One key: its default, and the rule that says which values are supported (`None`: any)."""

    default: Any
    rule: Callable[[Any], bool] | None = None
    says: str = ""


class Config(Mapping[str, Any]):
    """A frozen mapping whose entries are attributes too: `config["in_channels"]` is `config.in_channels`.

    Lists of the JSON file become tuples, so that nothing in it can be changed.
    """

    __slots__ = ("_entries",)

    def __init__(self, entries: Mapping[str, Any]):
        object.__setattr__(self, "_entries", {key: _freeze(value) for key, value in entries.items()})

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __getattr__(self, key: str) -> Any:
        if key.startswith("__") or key == "_entries":  # copy and pickle probe for these on an object not yet filled
            raise AttributeError(key)
        try:
            return self._entries[key]
        except KeyError:
            raise AttributeError(f"the configuration has no key {key!r}") from None

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"the configuration is frozen; make another with {key}=… instead")

    def __reduce__(self) -> tuple[type["Config"], tuple[dict[str, Any]]]:
        return Config, (dict(self._entries),)

    def __repr__(self) -> str:
        return f"Config({self._entries!r})"


def read(model: str, fields: Mapping[str, Field], given: Mapping[str, Any]) -> Config:
    """Check `given` against `fields` and fill in defaults; keys that begin with `_`, and notes, are kept.

    Raises `CheckpointInvalid` naming the first key that is unknown or has an unsupported value. An unknown key set to
    null or false asks for nothing and is dropped.
    """
    entries = {key: field.default for key, field in fields.items()}
    for key, value in given.items():
        if key.startswith("_") or key in _EMA_NOTES:
            entries[key] = value
        elif field := fields.get(key):
            value = _freeze(value)
            if value != field.default and field.rule is not None and not field.rule(value):
                raise CheckpointInvalid(f"{model} configuration: `{key}` = {value!r} is not supported; {field.says}")
            entries[key] = value
        elif value is not None and value is not False:
            raise CheckpointInvalid(
                f"{model} configuration: unknown key `{key}` = {value!r}. "
                "Remove it if it does not change the model; otherwise this model is of a kind we do not run."
            )
    return Config(entries)


def load_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; `CheckpointInvalid` if the file is absent, not JSON, or not an object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointInvalid(f"{path} is missing") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointInvalid(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointInvalid(f"{path} must hold a JSON object, not a {type(content).__name__}")
    return content


def save_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(dict(entries), indent=2, sort_keys=True, default=dict) + "\n", encoding="utf-8")


def _freeze(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(_freeze(item) for item in value)
    if isinstance(value, Mapping):
        return Config(value)
    return value


def only(default: Any, *others: Any) -> Field:
    """A key of which we run these values alone."""
    allowed = (default, *others)
    return Field(default, lambda value: value in allowed, f"it must be {' or '.join(map(repr, allowed))}")


def whole(default: int | None) -> Field:
    """A positive integer; null too where null is the default."""
    return Field(
        default, lambda value: (value is None and default is None) or _is_whole(value), "it must be a positive integer"
    )


def whole_per_level(default: int | tuple[int, ...]) -> Field:
    """A positive integer for all resolution levels, or a list with one a level."""
    return Field(
        default,
        lambda value: _is_whole(value) or _all(_is_whole, value),
        "it must be a positive integer or a list of them",
    )


def wholes(default: tuple[int, ...]) -> Field:
    return Field(default, lambda value: _all(_is_whole, value), "it must be a list of positive integers")


def number(default: float) -> Field:
    return Field(
        default, lambda value: isinstance(value, int | float) and not isinstance(value, bool), "it must be a number"
    )


def flag(default: bool) -> Field:
    return Field(default, lambda value: isinstance(value, bool), "it must be true or false")


def flag_per_level(default: bool) -> Field:
    return Field(
        default,
        lambda value: isinstance(value, bool) or _all(lambda v: isinstance(v, bool), value),
        "it must be true or false, or a list of them",
    )


def names(default: tuple[str, ...], *allowed: str) -> Field:
    """A list of block names out of `allowed`."""
    return Field(
        default, lambda value: _all(lambda v: v in allowed, value), f"its entries must be {' or '.join(allowed)}"
    )


def _is_whole(value: Any) -> bool:
    # bool is an int in Python; `true` is no width
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _all(rule: Callable[[Any], bool], value: Any) -> bool:
    return isinstance(value, tuple) and value != () and all(rule(item) for item in value)
