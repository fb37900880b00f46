"""Which back end a worker has, and that JAX is not there unless asked for."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from farm.config import load_settings
from farm.errors import Misconfigured
from worker import cli, lifecycle

_MODULES = "worker.cli, worker.lifecycle, worker.runner, worker.renderer, worker.prompt_length, producer.client"


def test_nothing_else_imports_jax():
    code = f"import sys, {_MODULES}; print(sorted({{'jax', 'jaxlib', 'torchax'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "arguments, environment, expected",
    [
        (["run"], {}, "torch"),
        (["run", "--backend", "jax"], {}, "jax"),
        (["--backend", "jax"], {}, "jax"),
        (["--backend=jax"], {}, "jax"),
        (["run"], {"FARM_BACKEND": "jax"}, "jax"),
        (["run", "--backend", "torch"], {"FARM_BACKEND": "jax"}, "torch"),
    ],
)
def test_the_back_end_is_chosen_by_option_or_environment(monkeypatch, arguments, environment, expected):
    served = []
    monkeypatch.setattr(lifecycle, "serve", lambda settings: served.append(settings.backend) or 0)
    monkeypatch.setattr(cli.Ledger, "ping", lambda self: None)
    done = CliRunner().invoke(cli.main, arguments, env=environment)
    assert done.exit_code == 0, done.output
    assert served == [expected]


def test_another_word_is_refused():
    done = CliRunner().invoke(cli.main, ["run", "--backend", "tensorflow"])
    assert done.exit_code == 2 and "--backend" in done.output
    with pytest.raises(Misconfigured, match="FARM_BACKEND"):
        load_settings(backend="tensorflow")


def test_without_jax_the_worker_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(lifecycle, "find_spec", lambda name: None)
    with pytest.raises(Misconfigured, match=r"inpaint-farm\[worker,jax\]"):
        lifecycle.serve(load_settings(backend="jax", store=f"file://{tmp_path}"))
