"""Fixtures: a private Redis, a real S3 server, object stores, and torch held to one thread."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from farm.storage import ObjectStore
from farm.storage.local import LocalStore
from farm.storage.s3 import S3Store
from tests.servers.redis import RedisServer
from tests.servers.s3 import S3Server, shared_radosgw, stop_shared, why_moto

# Set before torch or its BLAS is imported anywhere: the test processes share few cores.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

# What all processes of one run share: made by the first, found by pytest-xdist's workers in their environment.
_SHARED, _OWNER = "FARM_TEST_SHARED", "FARM_TEST_OWNER"


def pytest_configure(config: pytest.Config) -> None:
    if _SHARED not in os.environ:
        os.environ[_SHARED], os.environ[_OWNER] = tempfile.mkdtemp(prefix="farm-tests-"), str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    if os.environ.get(_OWNER) == str(os.getpid()):
        folder = Path(os.environ.pop(_SHARED))
        stop_shared(folder)
        shutil.rmtree(folder, ignore_errors=True)


def pytest_report_header(config: pytest.Config) -> str:
    try:
        return f"S3: {why_moto() or 'radosgw, a real server'}"
    except RuntimeError as error:  # each test that needs S3 fails with it
        return f"S3: {error}"


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server a test process. A test that kills or pauses it makes its own instead."""
    server = RedisServer(tmp_path_factory.mktemp("redis")).start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """The URL of an empty server."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server.url


@pytest.fixture(scope="session")
def moto_server() -> Iterator[S3Server]:
    """An imitation of S3 inside this process: up in no time, checks no signature."""
    from moto.server import ThreadedMotoServer  # takes half a second to import: only for who needs it

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield S3Server("moto", f"http://{host}:{port}")
    finally:
        server.stop()


@pytest.fixture(scope="session")
def s3_server(request: pytest.FixtureRequest) -> S3Server:
    """The real server, one a run; where it is not installed, moto."""
    if why_moto():
        server: S3Server = request.getfixturevalue("moto_server")
        return server
    return shared_radosgw(Path(os.environ[_SHARED]), int(os.environ[_OWNER]))


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """The name of a bucket of this test's own."""
    return new_bucket(s3_server)


def new_bucket(server: S3Server) -> str:
    name = f"t-{uuid.uuid4().hex[:16]}"
    server.client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def local_store(tmp_path: Path) -> LocalStore:
    """A store whose root is `tmp_path / "store"`."""
    return LocalStore(tmp_path / "store")


@pytest.fixture(scope="session")
def s3_store(s3_server: S3Server) -> S3Store:
    """The port on the S3 server; `s3_bucket` names a bucket to use it with."""
    return s3_server.store()


class StoreAt(NamedTuple):
    """A store, and the URL of a place in it that is this test's own and empty; join names to it."""

    store: ObjectStore
    url: str
    kind: str  # local, radosgw or moto


@pytest.fixture(scope="session")
def places() -> Callable[[S3Server], StoreAt]:
    """Fresh places in one bucket and through one client a server: making those anew costs most of a short test."""

    @cache
    def base(server: S3Server) -> tuple[S3Store, str]:
        return server.store(), new_bucket(server)

    def place(server: S3Server) -> StoreAt:
        store, bucket = base(server)
        return StoreAt(store, f"s3://{bucket}/{uuid.uuid4().hex[:16]}", server.kind)

    return place


def store_at(kind: str, request: pytest.FixtureRequest, folder: Path) -> StoreAt:
    """A place in the store `kind`: local, s3 or moto."""
    if kind == "local":
        return StoreAt(LocalStore(folder / "store"), f"file://{folder}/store", kind)
    place: StoreAt = request.getfixturevalue("places")(request.getfixturevalue(f"{kind}_server"))
    return place


@pytest.fixture(params=["local", "s3"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> StoreAt:
    """Each store in turn."""
    return store_at(request.param, request, tmp_path)
