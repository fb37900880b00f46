"""What may be a name or an address: judged alike by client and worker, before anything is opened."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import parse_qs, urlsplit

from farm.errors import InvalidName, Misconfigured, UrlNotAllowed
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
    if value[:5].lower() == "data:":
        raise UrlNotAllowed(
            f"{field}: a job does not carry the object itself; put it into the farm's store and name it."
        )
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


def check_redis_url(url: str, *, allow_plain: bool) -> None:
    """Raises Misconfigured for a Redis on another machine that is spoken to in the clear, or to whoever answers.

    The password and every job would be readable, and changeable, by anyone on the way. `allow_plain` takes it all the
    same (FARM_ALLOW_PLAIN_REDIS: a private link that encrypts by itself). The URL is not repeated, it may hold a
    password.
    """
    try:
        parts = urlsplit(url)
        query = parse_qs(parts.query)
        host = parts.hostname or query.get("host", ["localhost"])[-1]  # as redis-py reads it
    except ValueError:  # its message may hold a part of the password
        raise Misconfigured("FARM_REDIS_URL cannot be read; write rediss://host:6379/0.") from None
    if allow_plain or parts.scheme == "unix" or _is_here(host):
        return
    if parts.scheme != "rediss":
        raise Misconfigured(
            "FARM_REDIS_URL is plain redis:// to another machine, so its password and the jobs can be read on the way; "
            "use rediss://, or set FARM_ALLOW_PLAIN_REDIS=true if that link is private."
        )
    if query.get("ssl_cert_reqs", ["required"])[-1].lower().removeprefix("cert_") != "required":
        raise Misconfigured(
            "FARM_REDIS_URL turns the check of the server's certificate off (ssl_cert_reqs), so anyone on the way can "
            "answer; use ssl_cert_reqs=required, or set FARM_ALLOW_PLAIN_REDIS=true if that link is private."
        )


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
