"""Where a report's results and pictures come from: a results file or the farm itself, this machine or its store."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from farm.errors import FarmError, InvalidInput, InvalidParameter
from farm.schemas import JobResult
from farm.storage import ObjectStore
from producer.thumbnails import local_path

MAX_PICTURE_BYTES = 256 * 1024**2
_MAX_LINE = 4 * 1024**2


def read_results(file: IO[bytes], name: str) -> Iterator[JobResult]:
    """The results of an NDJSON file, one by one. Members of a line that results do not have are passed over.

    Raises InvalidParameter with the number of the line that is no result.
    """
    for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE + 1), b""), 1):
        if len(line) > _MAX_LINE:
            raise InvalidParameter("RESULTS", f"{name}, line {number}: longer than {_MAX_LINE:,} bytes")
        if not line.strip():
            continue
        try:
            members = json.loads(line)
            if not isinstance(members, dict):
                raise ValueError("a line is one JSON object")
            known = {name: value for name, value in members.items() if name in JobResult.model_fields}
            yield JobResult.from_json(json.dumps(known))
        except (ValueError, RecursionError, InvalidInput) as error:
            raise InvalidParameter("RESULTS", f"{name}, line {number}: not a result of this farm ({error})") from None


def sampled(results: Iterable[JobResult], count: int, *, seed: int) -> list[JobResult]:
    """`count` of the results, each equally likely, in their order; all when there are fewer. Holds `count` of them.

    Algorithm R: Vitter, Random sampling with a reservoir, ACM TOMS 11(1), 1985.
    """
    dice, kept = random.Random(seed), list[tuple[int, JobResult]]()
    for place, result in enumerate(results):
        if place < count:
            kept.append((place, result))
        elif (slot := dice.randrange(place + 1)) < count:
            kept[slot] = (place, result)
    return [result for _, result in sorted(kept, key=lambda pair: pair[0])]


class Pictures:
    """Reads pictures: files of this machine as they are, all else from the farm's store if there is one."""

    def __init__(self, open_store: Callable[[], ObjectStore | None]):
        """`open_store` is called at the first picture that is not on this machine."""
        self._open_store = open_store
        self._store: ObjectStore | None = None
        self._opened = False

    def __call__(self, uri: str) -> str | bytes | None:
        """What `picture_thumbnail` takes; None for a picture that cannot be had: the page has a gap there."""
        if local_path(uri) is not None:
            return uri
        if not self._opened:
            self._store, self._opened = self._open_store(), True
        if self._store is None or not uri.startswith("s3://"):
            return None
        try:
            return self._store.get(uri, max_bytes=MAX_PICTURE_BYTES).data
        except FarmError:
            return None
