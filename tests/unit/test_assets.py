"""Weights files are read once, pinned, and dropped when there are too many."""

import pickle
from dataclasses import dataclass

import numpy as np
import pytest
from safetensors.numpy import save

from farm.errors import (
    CheckpointInvalid,
    EmbeddingInvalid,
    LoraHashMismatch,
    LoraInvalid,
    LoraNonFinite,
    LoraNotFound,
    UnsafeWeightsFormat,
)
from worker.assets import Assets


@dataclass
class Reader:
    """Counts what it is asked to read."""

    calls: int = 0

    def __call__(self, data: bytes) -> bytes:
        self.calls += 1
        return data[::-1]

    __hash__ = object.__hash__


@pytest.fixture
def put(local_store, tmp_path):
    def write(name: str, data: bytes) -> str:
        uri = f"file://{tmp_path / 'store' / name}"
        local_store.put(uri, data, content_type="x/y", create_only=False)
        return uri

    return write


def get(assets, path, read, pinned=None, **options):
    return assets.get(path, read, pinned=pinned, progress=lambda size: None, **options)


def test_a_second_job_finds_it_in_memory(local_store, put):
    assets, read = Assets(local_store, max_bytes=100, max_file_bytes=100), Reader()
    path = put("a.safetensors", b"abc")
    first, second = get(assets, path, read), get(assets, path, read)
    assert (first.tier, second.tier, read.calls) == ("remote", "ram", 1)
    assert first.weights == second.weights == b"cba"


def test_a_file_that_changed_is_read_again(local_store, put):
    assets, read = Assets(local_store, max_bytes=100, max_file_bytes=100), Reader()
    path = put("a.safetensors", b"abc")
    get(assets, path, read)
    put("a.safetensors", b"abd")
    assert get(assets, path, read).weights == b"dba"


def test_one_file_read_as_two_things_is_two_assets(local_store, put):
    assets = Assets(local_store, max_bytes=100, max_file_bytes=100)
    path, one, other = put("a.safetensors", b"abc"), Reader(), Reader()
    get(assets, path, one)
    assert get(assets, path, other).tier == "remote"


def test_the_least_recently_used_goes_first(local_store, put):
    assets, read = Assets(local_store, max_bytes=8, max_file_bytes=100), Reader()
    a, b, c = (put(f"{name}.safetensors", name.encode() * 4) for name in "abc")
    for path in (a, b, a, c):
        get(assets, path, read)
    assert get(assets, a, read).tier == "ram"
    assert get(assets, b, read).tier == "remote"


@pytest.mark.parametrize("held", [False, True])
def test_a_pin_is_checked_also_in_memory(local_store, put, held):
    assets, read = Assets(local_store, max_bytes=100, max_file_bytes=100), Reader()
    path = put("a.safetensors", b"abc")
    if held:
        get(assets, path, read)
    with pytest.raises(LoraHashMismatch):
        get(assets, path, read, pinned="0" * 64)


def test_what_is_not_there_and_what_is_a_pickle(local_store, put, tmp_path):
    assets = Assets(local_store, max_bytes=100, max_file_bytes=100)
    with pytest.raises(LoraNotFound):
        get(assets, f"file://{tmp_path / 'store' / 'none.safetensors'}", Reader())
    with pytest.raises(UnsafeWeightsFormat):
        get(assets, put("a.ckpt", b"abc"), Reader())


@pytest.mark.parametrize(
    ("data", "invalid", "error"),
    [
        (b"rubbish" * 9, LoraInvalid, LoraInvalid),
        (b"rubbish" * 9, EmbeddingInvalid, EmbeddingInvalid),
        (pickle.dumps({"a": 1}), EmbeddingInvalid, UnsafeWeightsFormat),
        (save({"a": np.array([1, np.nan], np.float32)}), LoraInvalid, LoraNonFinite),
        (save({"a": np.array([1, np.inf], np.float16)}), CheckpointInvalid, CheckpointInvalid),
        (save({"a": np.ones(2)}, {"note": "x" * 3_000_000}), LoraInvalid, LoraInvalid),
    ],
)
def test_a_file_is_judged_before_it_is_read(local_store, put, data, invalid, error):
    assets, read = Assets(local_store, max_bytes=10**8, max_file_bytes=10**8), Reader()
    for _ in range(2):
        with pytest.raises(error) as caught:
            get(assets, put("a.safetensors", data), read, invalid=invalid)
        assert type(caught.value) is error
    assert read.calls == 0
    assert get(assets, put("a.safetensors", save({"a": np.ones(2)})), read, invalid=invalid).tier == "remote"
