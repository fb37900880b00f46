"""`docker compose up`: every file it mounts is there, every setting exists, and what feeds it is taken by a farm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from farm.config import Settings
from farm.schemas import InpaintJob
from tests.helm.chart import CHART

DOCKER = CHART.parents[1] / "docker"
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def mounts() -> Iterator[tuple[str, str, str]]:
    """(service, source, target)"""
    for name, service in SERVICES.items():
        for mount in service.get("volumes", []):
            source, target, *_ = mount.split(":")
            yield name, source, target


def test_all_parts_are_there() -> None:
    assert SERVICES.keys() >= {"redis", "s3", "dispatcher", "worker", "prometheus", "grafana"}
    for service in SERVICES.values():
        for other in service.get("depends_on", []):
            assert other in SERVICES


def test_every_file_that_is_mounted_or_built_exists() -> None:
    for _, source, _ in mounts():
        assert (DOCKER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"], source
    for service in SERVICES.values():
        if "build" in service:
            context = DOCKER / service["build"]["context"]
            assert (context / service["build"]["dockerfile"]).is_file()


def test_nothing_runs_with_more_rights_than_it_needs() -> None:
    for name, service in SERVICES.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


@pytest.mark.parametrize("name", ["dispatcher", "worker", "feed"])
def test_the_farm_reads_its_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = SERVICES[name]["environment"]
    for variable, value in given.items():
        assert isinstance(value, str), variable
        assert not variable.startswith("FARM_") or variable[5:].lower() in Settings.model_fields, variable
        monkeypatch.setenv(variable, value)
    read = Settings()
    assert read.store == "s3://farm/farm"
    assert read.buckets()[0] == (192, 192)
    s3 = SERVICES["s3"]["environment"]
    assert (s3["S3_BUCKET"], s3["S3_PORT"]) == ("farm", "9000")
    assert {key: given[key] for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}.items() <= s3.items()


def test_prometheus_scrapes_the_farm_and_knows_the_alerts(tmp_path: Path) -> None:
    config = (DOCKER / "compose" / "prometheus.yaml").read_text()
    (tmp_path / "prometheus.yaml").write_text(config)
    (tmp_path / "alerts.yaml").write_text((CHART / "rules" / "alerts.yaml").read_text())
    done = subprocess.run(
        ["promtool", "check", "config", str(tmp_path / "prometheus.yaml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rules found" in done.stdout
    targets = yaml.safe_load(config)["scrape_configs"][0]["static_configs"][0]["targets"]
    assert {target.split(":")[0] for target in targets} == {"dispatcher", "worker"}
    where = {(source, target) for name, source, target in mounts() if name == "prometheus"}
    assert ("../helm/inpaint-farm/rules/alerts.yaml", "/etc/prometheus/alerts.yaml") in where


def test_grafana_opens_with_the_dashboard() -> None:
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    (folder,) = (source for name, source, target in mounts() if name == "grafana" and home.startswith(f"{target}/"))
    assert (DOCKER / folder / Path(home).name).is_file()
    provider = yaml.safe_load((DOCKER / "compose" / "grafana-dashboards.yaml").read_text())["providers"][0]
    assert provider["options"]["path"] == str(Path(home).parent)
    source = yaml.safe_load((DOCKER / "compose" / "grafana-datasource.yaml").read_text())["datasources"][0]
    assert (source["url"], source["isDefault"]) == ("http://prometheus:9090", True)


def test_what_feeds_the_farm_is_accepted_by_it(redis_url: str, tmp_path: Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "a.safetensors").write_bytes(b"not looked at before it is painted with")
    store = f"file://{tmp_path}/bucket/farm"
    done = subprocess.run(
        [sys.executable, str(DOCKER / "compose" / "feed.py")],
        env={
            "PATH": os.environ["PATH"], "PYTHONPATH": str(DOCKER.parent), "FARM_REDIS_URL": redis_url,
            "FARM_STORE": store, "FARM_LOCAL_ROOTS": json.dumps([str(tmp_path / "bucket")]),
            "FEED_LORAS": str(tmp_path / "loras"), "FEED_JOBS": "2", "FEED_ROUNDS": "1", "FEED_WAIT": "0",
            "FEED_SECONDS": "0",
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 jobs submitted\n"
    lines = [path.read_text() for path in (tmp_path / "bucket" / "farm" / "specs").rglob("single.ndjson")]
    jobs = [InpaintJob.from_json(line.splitlines()[0]) for line in lines]
    assert {len(job.loras) for job in jobs} == {1}
    for job in jobs:
        for uri in (job.image, job.mask, job.loras[0].path):
            assert uri and Path(re.sub("^file://", "", uri)).is_file()
