"""Debian's Prometheus scrapes a live worker and a live dispatcher, and every panel and alert can be asked of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from farm.schemas import InpaintJob
from producer.client import Client
from producer.process import Process, free_port
from tests.helm.chart import CHART
from tests.helm.test_monitoring import alerts, panel_queries
from tests.integration.quick_farm import QuickFarm

_VARIABLES = {"$__rate_interval": "1m", "$namespace": ".*", "$model": ".*", "$price": "1.00"}


class WatchedFarm(QuickFarm):
    """Its dispatcher's metrics are on a port that is known."""

    def start_dispatcher(self) -> None:
        self.dispatcher_port = free_port()
        self.dispatcher = self._process("producer", "dispatcher", {"FARM_METRICS_PORT": str(self.dispatcher_port)})


class Prometheus:
    """A server of this test's own, scraping `targets` every half second."""

    def __init__(self, folder: Path, targets: list[str]):
        self._port = free_port()
        (folder / "alerts.yaml").write_text((CHART / "rules" / "alerts.yaml").read_text())
        config = {
            "global": {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "1s"},
            "rule_files": ["alerts.yaml"],
            "scrape_configs": [{"job_name": "farm", "static_configs": [{"targets": targets}]}],
        }
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        binary = shutil.which("prometheus")
        assert binary, "prometheus is missing: run tests/servers/install.sh"
        command = [
            binary, f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address=127.0.0.1:{self._port}",
        ]  # fmt: skip
        self.process = Process(command, folder / "prometheus.log", {**os.environ, "GOMAXPROCS": "1"})

    def ask(self, path: str) -> Any:
        with urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}", timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        """Samples of an instant query; an expression that Prometheus refuses is an HTTPError."""
        found: list[dict[str, Any]] = self.ask(f"query?query={quote(expr)}")["result"]
        return found

    def sees(self, expr: str) -> bool:
        try:
            return bool(self.query(expr))
        except OSError:  # not up yet
            return False


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WatchedFarm]:
    with WatchedFarm(tmp_path_factory.mktemp("watched")) as farm:
        farm.wait_ready()
        yield farm


@pytest.fixture(scope="module")
def prometheus(farm: WatchedFarm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    targets = [f"127.0.0.1:{port}" for port in (farm.settings.metrics_port, farm.dispatcher_port)]
    server = Prometheus(tmp_path_factory.mktemp("prometheus"), targets)
    try:
        server.process.wait_until(lambda: server.sees("count(up == 1) == 2"), 30)
        yield server
    finally:
        server.process.stop(grace=5)


def test_prometheus_sees_what_the_farm_does(farm: WatchedFarm, prometheus: Prometheus) -> None:
    farm.pictures()
    client = Client(farm.settings)
    row = {"image": f"file://{farm.inputs}/photo.png", "mask": f"file://{farm.inputs}/mask.png"}
    handle = client.submit(InpaintJob.model_validate({**row, "num_inference_steps": 1}))
    assert handle.result(timeout=30).outputs
    wanted = 'farm_jobs_total{status="succeeded"} >= 1 and on () (sum(farm_hinted_jobs_total) >= 1)'
    prometheus.process.wait_until(lambda: prometheus.sees(wanted), 20)
    assert prometheus.query('farm_worker_state{state="ready"}')[0]["value"][1] == "1"
    assert prometheus.query("farm_queue_jobs")
    assert prometheus.query("farm_backlog_gpu_seconds")


@pytest.mark.parametrize("expr", [*panel_queries(), *(rule["expr"] for rule in alerts())])
def test_prometheus_answers_every_panel_and_alert(expr: str, prometheus: Prometheus) -> None:
    for name, value in _VARIABLES.items():
        expr = expr.replace(name, value)
    prometheus.query(expr)


def test_the_alerts_are_loaded_and_none_fires(prometheus: Prometheus) -> None:
    (group,) = prometheus.ask("rules")["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert [rule["name"] for rule in group["rules"] if rule["state"] == "firing"] == []
