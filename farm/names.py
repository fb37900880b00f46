"""What may be a name or an address in a job: judged alike by client and worker, before anything is opened."""

from __future__ import annotations

import re

from farm.errors import InvalidName, UrlNotAllowed
from farm.storage.base import shown, split

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SCHEMES = ("s3", "file")


def check_name(field: str, value: str) -> str:
    """`value` if it can be one part of an object key (1–128 letters, digits, `.`, `_`, `-`), else InvalidName."""
    if not NAME.fullmatch(value) or ".." in value:
        raise InvalidName(
            f"{field}: {shown(value)!r} is not a name; use 1 to 128 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit, without '..'."
        )
    return value


def check_uri(field: str, value: str, *, prefix: bool = False) -> str:
    """`value` if it is an `s3://bucket/key` or `file:///path` without tricks, else UrlNotAllowed or InvalidName."""
    scheme, separator, _ = value.partition("://")
    if not separator:
        raise InvalidName(f"{field}: {shown(value)!r} has no scheme; write s3://bucket/key or file:///path.")
    if scheme not in SCHEMES:
        raise UrlNotAllowed(
            f"{field}: {shown(value)!r} is not fetched; put the object into the farm's store and name it s3://bucket/key."
        )
    try:
        split(value, scheme, prefix=prefix)
    except (InvalidName, UrlNotAllowed) as error:
        raise type(error)(f"{field}: {error}") from None
    return value
