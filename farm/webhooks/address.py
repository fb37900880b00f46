"""Which addresses a webhook may have: judged by its text when a job is submitted and run, by DNS when it is sent."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from farm.errors import UrlNotAllowed

MAX_URL = 2048
_TEXT = re.compile(r"[!-~]+")
_HOST = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")

# Public by their number, or to Python 3.11's tables, and yet not outside: Azure's platform answers at the first from
# within every machine, Oracle's in the second; the others are reserved (IANA's registries of special addresses).
_INSIDE: Final = tuple(
    ip_network(text) for text in ("168.63.129.16/32", "192.0.0.0/24", "2001::/23", "3fff::/20", "5f00::/16")
)
_NAT64: Final = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))

Address = IPv4Address | IPv6Address


class Target(NamedTuple):
    """A webhook's address in its parts. `host` is a name in lower case, never a number."""

    scheme: str
    host: str
    port: int
    path: str  # with its query

    @property
    def netloc(self) -> str:
        return self.host if self.port == _PORTS[self.scheme] else f"{self.host}:{self.port}"


_PORTS = {"https": 443, "http": 80}


def parse(url: str) -> Target:
    """The parts of `url`. Raises UrlNotAllowed unless it is http(s)://name[:port][/path][?query] in printable ASCII.

    An address by number is refused, whatever it is: a name says who is called, and has a certificate.
    """
    if len(url) > MAX_URL or not _TEXT.fullmatch(url):
        raise UrlNotAllowed(f"webhook_url: is not printable ASCII of at most {MAX_URL} characters; encode it.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UrlNotAllowed("webhook_url: cannot be read; write https://name/path.") from None
    if parts.scheme not in _PORTS or "@" in parts.netloc or parts.fragment or "\\" in url or port == 0:
        raise UrlNotAllowed("webhook_url: is https://name[:port]/path, without a user and without a fragment.")
    if not _HOST.fullmatch(host):
        raise UrlNotAllowed(f"webhook_url: {host[:80]!r} is not a host's name; numbers are not called.")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or _PORTS[parts.scheme], path)


def check_url(url: str, *, hosts: Iterable[str], allow_http: bool) -> Target:
    """`parse`, and the allowlist: "name", "*.name" (its subdomains), each with ":port" where it is not 443."""
    target = parse(url)
    if target.scheme != "https" and not allow_http:
        raise UrlNotAllowed("webhook_url: only https is called; ask who operates the farm.")
    if not any(_matches(target, pattern) for pattern in hosts):
        raise UrlNotAllowed(
            f"webhook_url: {target.netloc!r} is not among the hosts that may be called here; use one that is, "
            "or ask who operates the farm."
        )
    return target


def check_pattern(pattern: str) -> str:
    """`pattern` if it can be a member of an allowlist, else ValueError."""
    name, _, port = pattern.removeprefix("*.").partition(":")
    if not _HOST.fullmatch(name) or (port and not (port.isdigit() and 0 < int(port) < 65536)):
        raise ValueError('a host is written "name", "*.name" or "name:port", in lower case')
    return pattern


def _matches(target: Target, pattern: str) -> bool:
    name, _, port = pattern.partition(":")
    if target.port != int(port or _PORTS[target.scheme]):
        return False
    return target.host.endswith(name[1:]) if name.startswith("*.") else target.host == name


Resolver = Callable[[str, int], Sequence[str]]


def lookup(host: str, port: int) -> list[str]:
    """All addresses of a name, as DNS tells them. Raises OSError."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def resolve(target: Target, *, networks: Iterable[str] = (), resolver: Resolver = lookup) -> str:
    """The one address to connect to. Raises OSError if the name has none now, UrlNotAllowed if any is not public.

    `networks` (CIDR) are private ones that may be called all the same. The name is resolved once, here: who connects to
    what this returns cannot be sent elsewhere by a second answer (DNS rebinding).
    """
    inside = [ip_network(network) for network in networks]
    found = resolver(target.host, target.port)
    if not found:
        raise OSError(f"{target.host} has no address")
    for text in found:
        address = ip_address(text.partition("%")[0])
        if not public(address) and not any(address in network for network in inside):
            raise UrlNotAllowed(f"webhook_url: {target.host!r} has the address {address}, which is not public.")
    return found[0]


def public(address: Address) -> bool:
    """Whether the address, and every address that it carries inside, is one of the internet's own."""
    if isinstance(address, IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour
        if any(address in network for network in _NAT64):
            carried = IPv4Address(int(address) & 0xFFFF_FFFF)
        if carried is not None:
            return public(carried)
    return (
        address.is_global
        and not (address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback)
        and not address.is_link_local
        and not any(address in network for network in _INSIDE)
    )
