"""A weights file is judged before it is read, and is told to be what it should have been."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import save

from farm.errors import (
    CheckpointInvalid,
    EmbeddingInvalid,
    LoraIncompatible,
    LoraInvalid,
    LoraNonFinite,
    UnsafeWeightsFormat,
)
from worker.assets import Kind


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
def test_a_file_is_judged_before_it_is_read(data, invalid, error):
    with pytest.raises(error) as caught:
        Kind(lambda data: pytest.fail("it was read"), invalid).judged(data)
    assert type(caught.value) is error


def test_what_is_sound_is_read_and_what_reading_says_is_said():
    data = save({"a": np.ones(2)})
    assert Kind(len).judged(data) == len(data)

    def read(data: bytes) -> None:
        raise LoraIncompatible("It was made for another base.")

    with pytest.raises(LoraIncompatible):
        Kind(read).judged(data)
