"""What `farm doctor` says of a store that lies, a model that is broken, a device that is there or not."""

import time

import pytest
import torch
from safetensors.torch import save_file

from farm.config import Settings, load_settings
from producer import diagnosis
from producer.testing.store import MemoryStore


def symptom(check, settings):
    (found,) = diagnosis.CHECKS[check](settings)
    return found


class Overwriting(MemoryStore):
    """A store that takes `If-None-Match: *` for nothing, and says nothing."""

    def put(self, uri, data, *, create_only, **options):
        return super().put(uri, data, create_only=False, **options)


@pytest.mark.parametrize(("store", "level"), [(MemoryStore(), "good"), (Overwriting(), "bad")])
def test_a_store_that_silently_overwrites_is_caught(monkeypatch, store, level):
    monkeypatch.setattr(Settings, "open_store", lambda self: store)
    found = symptom("store", load_settings(store="s3://bucket/farm"))
    assert found.level == level and bool(found.cure) == (level == "bad")
    assert list(store.list("s3://bucket/")) == [], "what was tried is removed again"


def test_a_redis_that_is_away_is_one_symptom_and_the_others_are_looked_for(tmp_path):
    settings = load_settings(redis_url="redis://127.0.0.1:1/0", store=f"file://{tmp_path}", model_path=None)
    found = {one.what: one for one in diagnosis.diagnose(settings, leave_out=frozenset({"device"}))}
    assert found["Redis"].level == "bad" and "QueueUnavailable" in found["Redis"].seen
    assert found["store"].level == found["model"].level == "good"


@pytest.mark.parametrize(
    ("info", "level"),
    [
        ({"redis_version": "7.4.11"}, "good"),
        ({"redis_version": "7.4.10"}, "warning"),
        ({"redis_version": "7.0.15"}, "warning"),
        ({"redis_version": "9.0.0"}, "good"),
        ({"redis_version": "7.2.4", "valkey_version": "9.1.0"}, "good"),
        ({}, "warning"),
    ],
)
def test_versions_are_held_against_the_floor_of_their_line(info, level):
    assert diagnosis._version(info).level == level


def test_a_clock_that_is_off_is_told(redis_url, monkeypatch):
    settings = load_settings(redis_url=redis_url)
    assert symptom("clock", settings).level == "good"
    real = time.time
    monkeypatch.setattr(diagnosis.time, "time", lambda: real() + 60)
    assert symptom("clock", settings).level == "bad"


def test_a_model_is_whole_or_not(tmp_path):
    settings = load_settings(model_path=tmp_path)
    assert "model_index.json" in symptom("model", settings).seen
    (tmp_path / "model_index.json").write_text("{}")
    assert symptom("model", settings).level == "bad"
    (tmp_path / "unet").mkdir()
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({"a": torch.zeros(4)}, weights)
    assert symptom("model", settings).level == "good"
    weights.write_bytes(weights.read_bytes()[:-4])
    broken = {one.what: one for one in diagnosis.diagnose(settings, leave_out=frozenset({"Redis", "clock", "device"}))}
    assert broken["model"].level == "bad" and weights.name in broken["model"].seen


def test_the_device_is_asked_of_a_process_of_its_own():
    found = symptom("device", load_settings(device="cpu"))
    assert found.level == "warning" and "cpu" in found.seen and torch.__version__ in found.seen


def test_a_device_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setenv("FARM_DEVICE", "cuda:7")
    found = symptom("device", load_settings())
    assert found.level == "bad" and found.cure
