"""Alerts, dashboard and documentation speak of metrics and labels that exist; promtool tries the alerts."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from farm import metrics
from helm.dashboard import OUT, written
from tests.helm.chart import CHART, NAMESPACE, Object, merged, metrics_in, only, render, values_of

RULES = CHART / "rules" / "alerts.yaml"
CASES = Path(__file__).with_name("alerts_test.yaml")
TARGET_LABELS = {"namespace", "pod", "instance", "le"}  # what Prometheus adds to each series, and a histogram's own
WATCHED: Object = merged(values_of("values-production"), {"monitoring": {"rules": {"enabled": True}}})


def declared() -> dict[str, set[str]]:
    """Series that /metrics can have → their labels."""
    found = {}
    for metric in metrics.REGISTRY._collector_to_names:
        names = [metric._name] if metric._type == "gauge" else [f"{metric._name}_total"]
        if metric._type == "histogram":
            names = [metric._name, *(f"{metric._name}_{part}" for part in ("bucket", "sum", "count"))]
        found |= {name: set(metric._labelnames) for name in names}
    return found


def alerts() -> list[Object]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panel_queries() -> list[str]:
    panels = json.loads(OUT.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def promtool(*arguments: object) -> None:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("expr", [*panel_queries(), *(rule["expr"] for rule in alerts())])
def test_every_metric_of_a_query_exists_and_has_its_labels(expr: str) -> None:
    known = declared()
    names = metrics_in(expr)
    assert names and names <= set(known)
    for name, matchers in re.findall(r"\b(farm_[a-z_]+)\{([^}]*)\}", expr):
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers)) <= known[name] | TARGET_LABELS
    common = set.union(*(known[name] for name in names)) | TARGET_LABELS
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expr):
        assert {label.strip() for label in labels.split(",")} <= common


def test_the_documentation_lists_exactly_the_metrics_there_are() -> None:
    rows = re.findall(r"^\| `(farm_[a-z_]+)(?:\{([^}]*)\})?`", (CHART / "METRICS.md").read_text(), re.MULTILINE)
    written_down = {name: set(filter(None, labels.split(","))) for name, labels in rows}
    have = {name: labels for name, labels in declared().items() if not name.endswith(("_bucket", "_sum", "_count"))}
    assert written_down == have


def test_the_dashboard_is_the_one_of_its_table() -> None:
    """If this fails: `python helm/dashboard.py`."""
    assert OUT.read_text() == written()


def test_the_dashboard_shows_what_an_operator_asks_for() -> None:
    assert metrics_in(" ".join(panel_queries())) >= {
        "farm_images_total", "farm_vram_bytes", "farm_engine_busy_seconds_total", "farm_job_seconds_bucket",
        "farm_lora_swaps_total", "farm_queue_oldest_seconds", "farm_backlog_gpu_seconds", "farm_gpu_faults_total",
    }  # fmt: skip
    assert any("$price" in query for query in panel_queries())


def test_the_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(OUT.read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    variables = {"$__rate_interval": "1m", "$namespace": ".*", "$model": ".*", "$price": "1.00"}
    rules = []
    for index, query in enumerate(panel_queries()):
        for name, value in variables.items():
            query = query.replace(name, value)
        assert "$" not in query
        rules.append({"record": f"panel:{index}", "expr": query})
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", path)


def test_promtool_accepts_the_alerts_as_they_are_and_as_the_chart_has_them(tmp_path: Path) -> None:
    promtool("check", "rules", RULES)
    (tmp_path / "rendered.yaml").write_text(yaml.safe_dump(only(render(WATCHED), "PrometheusRule")["spec"]))
    promtool("check", "rules", tmp_path / "rendered.yaml")


def test_the_alerts_come_when_they_should_and_not_else() -> None:
    promtool("test", "rules", CASES)


def test_every_alert_is_tried_and_has_its_paragraph_in_the_runbook() -> None:
    names = [rule["alert"] for rule in alerts()]
    tried = [
        case["alertname"]
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case["exp_alerts"]
    ]
    paragraphs = re.findall(r"^## (\w+)\n\n(.+?)(?=\n\n## |\Z)", (CHART / "RUNBOOK.md").read_text(), re.S | re.M)
    assert set(tried) == set(names)
    assert [name for name, _ in paragraphs] == names
    assert all(len(text) > 200 for _, text in paragraphs)


def test_the_chart_confines_every_selector_of_an_alert_to_its_namespace() -> None:
    for rule in only(render(WATCHED), "PrometheusRule")["spec"]["groups"][0]["rules"]:
        selectors = re.findall(r"farm_[a-z_]+.", rule["expr"])
        assert selectors
        assert all(found.endswith("{") for found in selectors), rule["alert"]
        assert rule["expr"].count(f'{{namespace="{NAMESPACE}",') == len(selectors)


def test_an_alert_can_be_changed_or_taken_out() -> None:
    overrides = {"FarmQueueOld": {"for": "1h", "labels": {"severity": "page"}}, "FarmJobsFail": {"enabled": False}}
    changed = merged(WATCHED, {"monitoring": {"rules": {"overrides": overrides, "runbookUrl": "https://x.test/r.md"}}})
    rules = {rule["alert"]: rule for rule in only(render(changed), "PrometheusRule")["spec"]["groups"][0]["rules"]}
    assert rules.keys() == {rule["alert"] for rule in alerts()} - {"FarmJobsFail"}
    assert (rules["FarmQueueOld"]["for"], rules["FarmQueueOld"]["labels"]["severity"]) == ("1h", "page")
    assert "7200" in rules["FarmQueueOld"]["expr"]
    assert rules["FarmDeadJobs"]["annotations"]["runbook_url"] == "https://x.test/r.md#farmdeadjobs"


def test_the_configmap_holds_the_dashboard() -> None:
    found = only(render(WATCHED), "ConfigMap", "-dashboard")
    assert json.loads(found["data"]["inpaint-farm.json"]) == json.loads(OUT.read_text())
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert found["metadata"]["namespace"] == "monitoring"
