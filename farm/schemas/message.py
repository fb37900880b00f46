"""What every message is: frozen, JSON in and out, and refused in the farm's own words."""

from __future__ import annotations

from contextvars import ContextVar
from difflib import get_close_matches
from typing import Annotated, Any, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic import ModelWrapValidatorHandler as Handler

from farm.errors import FarmError, InvalidParameter, InvalidPrompt, UnknownField, UnsupportedSpecVersion
from farm.webhooks.address import parse

SCHEMA_VERSION: Final = 1

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _checked_webhook(url: str) -> str:
    parse(url)
    return url


WebhookUrl = Annotated[str, AfterValidator(_checked_webhook)]

_inside: ContextVar[bool] = ContextVar("inside a message", default=False)


class Message(BaseModel):
    """A frozen message that raises the farm's own errors, with the path of the field that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=256 * 1024)

    @model_validator(mode="wrap")
    @classmethod
    def _translate(cls, data: Any, handler: Handler[Self]) -> Self:
        if _inside.get():  # a message inside a message: the outermost one knows the whole path
            return handler(data)
        token = _inside.set(True)
        try:
            return handler(data)
        except ValidationError as error:
            raise _farm_error(error, cls) from None
        finally:
            _inside.reset(token)

    def to_json(self) -> bytes:
        """Compact UTF-8 JSON, keys in declaration order: equal messages are equal bytes."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:  # not JSON at all: no validator of ours has run
            raise _farm_error(error, cls) from None


def _farm_error(error: ValidationError, cls: type[BaseModel]) -> FarmError:
    first = error.errors(include_url=False, include_context=True)[0]
    path = ".".join(str(part) for part in first["loc"]) or cls.__name__
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), cls.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it."
        return UnknownField(f"{path!r} is not a field of {cls.__name__}; {hint}")
    if path == "schema_version":
        return UnsupportedSpecVersion(f"schema_version {given!r} is not known here; this farm reads {SCHEMA_VERSION}.")
    if kind == "string_unicode":
        return InvalidPrompt(f"{path}: holds a lone surrogate; send valid Unicode.")
    if kind == "json_invalid":
        return InvalidParameter(cls.__name__, f"is not valid JSON: {first['msg']}")
    shown = "" if isinstance(given, (dict, list, tuple)) or kind == "missing" else f", not {given!r:.80}"
    return InvalidParameter(path, first["msg"][0].lower() + first["msg"][1:] + shown)


def dump_line(message: Message) -> bytes:
    """One NDJSON line."""
    return message.to_json() + b"\n"
