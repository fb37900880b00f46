"""What may be a name and what may be an address: judged alike by client and worker, before anything is opened."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from farm.errors import InvalidName, UrlNotAllowed

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SCHEMES = ("s3", "file")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED = re.compile(r"%(2e|2f|5c|00)", re.IGNORECASE)


def check_name(field: str, value: str) -> str:
    """`value` if it can be one part of an object key (1–128 letters, digits, `.`, `_`, `-`), else InvalidName."""
    if not NAME.fullmatch(value) or ".." in value:
        raise InvalidName(
            f"{field}: {value[:80]!r} is not a name; use 1 to 128 letters, digits, '.', '_' or '-', "
            "beginning with a letter or digit, without '..'."
        )
    return value


def check_uri(field: str, value: str) -> str:
    """`value` if it is an `s3://bucket/key` or `file:///path` without tricks, else UrlNotAllowed or InvalidName."""
    if _CONTROL.search(value) or len(value) > 2048:
        raise InvalidName(f"{field}: an address has no control characters and at most 2048 characters.")
    try:
        parts = urlsplit(value)
    except ValueError:
        raise InvalidName(f"{field}: {value[:80]!r} cannot be read as an address.") from None
    if parts.scheme not in SCHEMES:
        if parts.scheme:
            raise UrlNotAllowed(
                f"{field}: {parts.scheme}:// addresses are not fetched; put the object into the farm's store and name "
                "it s3://bucket/key."
            )
        raise InvalidName(f"{field}: {value[:80]!r} has no scheme; write s3://bucket/key (or file:///path).")
    if "@" in parts.netloc or ":" in parts.netloc:
        raise UrlNotAllowed(f"{field}: an address names a bucket, never a host, a port or credentials.")
    if parts.scheme == "file" and parts.netloc:
        raise UrlNotAllowed(f"{field}: a file address has no host; write file:///path.")
    if parts.scheme == "s3" and not parts.netloc:
        raise InvalidName(f"{field}: {value[:80]!r} names no bucket; write s3://bucket/key.")
    path = value.split("://", 1)[1]
    if ".." in path.split("/") or _ENCODED.search(path) or "\\" in path:
        raise InvalidName(f"{field}: '..', backslashes and encoded separators are not allowed in an address.")
    return value
