"""What a farm's processes say of themselves: their /metrics, read from each, or from a Prometheus that reads them all.

A worker's address may be that of many: a name that resolves to several machines (a headless service of Kubernetes) is
asked at each of them.
"""

from __future__ import annotations

import json
import socket
from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from urllib.error import URLError
from urllib.parse import urlencode, urlsplit, urlunsplit
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from farm.errors import InvalidParameter, QueueUnavailable

_SECONDS = 5.0
_MAX_BYTES = 16 * 1024**2
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Sighting:
    """One process' metrics. `values`: (name, labels) → value."""

    name: str
    values: Mapping[tuple[str, Labels], float] = field(default_factory=dict)
    trouble: str = ""

    def total(self, metric: str, **labels: str) -> float:
        """The sum of the series of a metric that have these labels."""
        wanted = labels.items()
        return sum(
            value for (name, has), value in self.values.items() if name == metric and wanted <= dict(has).items()
        )

    def by(self, metric: str, label: str) -> dict[str, float]:
        """Value by the value of a label."""
        found: dict[str, float] = defaultdict(float)
        for (name, has), value in self.values.items():
            if name == metric:
                found[dict(has).get(label, "")] += value
        return dict(found)


def from_workers(urls: Iterable[str]) -> list[Sighting]:
    """Each worker's own word; one that does not answer is told with its trouble."""
    places = [place for url in urls for place in _each_machine(url)]
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_scraped, places))


def from_prometheus(url: str) -> list[Sighting]:
    """The farm's metrics by instance. Raises QueueUnavailable when Prometheus does not answer."""
    query = urlencode({"query": '{__name__=~"farm_.*"}'})
    try:
        with urlopen(f"{_http(url)}/api/v1/query?{query}", timeout=_SECONDS) as answer:
            data = json.loads(answer.read(_MAX_BYTES))
        series = data["data"]["result"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise QueueUnavailable(f"Prometheus at {url} does not answer ({_why(error)}); check the address.") from None
    found: dict[str, dict[tuple[str, Labels], float]] = defaultdict(dict)
    for one in series:
        labels = dict(one["metric"])
        name, instance = labels.pop("__name__"), labels.pop("instance", "?")
        found[instance][name, frozenset(labels.items())] = float(one["value"][1])
    return [Sighting(instance, values) for instance, values in sorted(found.items())]


def _each_machine(url: str) -> list[str]:
    parts = urlsplit(_http(url))
    port = parts.port or 9090
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError:
        return [urlunsplit(parts)]
    hosts = sorted({str(address[4][0]) for address in found})
    hosts = [host for host in hosts if ":" not in host] or hosts  # one stack is enough
    return [f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}" for host in hosts]


def _http(url: str) -> str:
    text = url if "://" in url else f"http://{url}"
    if urlsplit(text).scheme not in ("http", "https") or not urlsplit(text).hostname:
        raise InvalidParameter("--worker", f"{url!r} is no address of a web server; write http://host:9090")
    return text.rstrip("/")


def _scraped(url: str) -> Sighting:
    name = urlsplit(url).netloc
    try:
        with urlopen(f"{url}/metrics", timeout=_SECONDS) as answer:
            text = answer.read(_MAX_BYTES).decode()
        families = list(text_string_to_metric_families(text))
    except (OSError, ValueError) as error:
        return Sighting(name, trouble=_why(error))
    samples = (sample for family in families for sample in family.samples)
    return Sighting(name, {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples})


def _why(error: Exception) -> str:
    reason = error.reason if isinstance(error, URLError) else error
    return str(getattr(reason, "strerror", None) or type(reason).__name__)
