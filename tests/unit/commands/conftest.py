"""A farm in memory, and the `farm` command that talks to it."""

import pytest
from click.testing import CliRunner

from producer.cli import main
from producer.commands import common
from producer.testing import FakeFarm


@pytest.fixture
def farm(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return FakeFarm()


@pytest.fixture
def run(farm, monkeypatch):
    """Calls `farm …`; its result has exit_code, stdout, stderr."""
    monkeypatch.setattr(common, "Client", lambda settings: farm.client())
    monkeypatch.setenv("FARM_STORE", farm.settings.store)
    return lambda *arguments: CliRunner().invoke(main, [str(argument) for argument in arguments])
