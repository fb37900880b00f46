"""Who reaches whom: default-deny and its exceptions, and that what selects pods finds them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from tests.helm.chart import RELEASE, Object, environment, merged, of_kind, only, render, values_of

TRIAL, PRODUCTION = values_of("values-trial"), values_of("values-production")
FULL = f"{RELEASE}-inpaint-farm"


def production(*changes: Object) -> list[Object]:
    return render(merged(PRODUCTION, *changes))


def selects(selector: Object, labels: dict[str, str]) -> bool:
    tests = selector.get("matchExpressions", [])
    assert all(test["operator"] == "In" for test in tests)
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items()) and all(
        labels.get(test["key"]) in test["values"] for test in tests
    )


def labels_of(objects: list[Object]) -> dict[str, dict[str, str]]:
    """component → labels of its pods."""
    pods = [item if item["kind"] == "Pod" else item.get("spec", {}).get("template") for item in objects]
    found = [pod["metadata"]["labels"] for pod in pods if pod]
    return {labels["app.kubernetes.io/component"]: labels for labels in found}


def egress_of(objects: list[Object], component: str) -> list[Object]:
    labels = labels_of(objects)[component]
    policies = [p["spec"] for p in of_kind(objects, "NetworkPolicy") if selects(p["spec"]["podSelector"], labels)]
    assert any(set(spec["policyTypes"]) == {"Ingress", "Egress"} and "egress" not in spec for spec in policies)
    return [rule for spec in policies for rule in spec.get("egress", [])]


def selected(rules: list[Object], labels: dict[str, str]) -> set[int]:
    """Ports on which pods with these labels are reached."""
    return {
        entry["port"]
        for rule in rules
        for peer in rule["to"]
        if "podSelector" in peer and "namespaceSelector" not in peer and selects(peer["podSelector"], labels)
        for entry in rule["ports"]
    }


def reaches(rules: list[Object], address: str, port: int) -> bool:
    def within(cidr: str) -> bool:
        return ip_address(address) in ip_network(cidr)

    blocks = [
        peer["ipBlock"]
        for rule in rules
        if port in [entry["port"] for entry in rule["ports"]]
        for peer in rule["to"]
        if "ipBlock" in peer
    ]
    return any(within(block["cidr"]) and not any(map(within, block.get("except", []))) for block in blocks)


@pytest.mark.parametrize("component", ["dispatcher", "worker"])
def test_nobody_reaches_the_instance_metadata(component: str) -> None:
    for objects in (
        render(TRIAL),
        production(),
        production({"networkPolicy": {"workloadIdentity": "eks-pod-identity"}}),
    ):
        rules = egress_of(objects, component)
        for port in (80, 443, 6379):
            assert not reaches(rules, "169.254.169.254", port)
            assert not reaches(rules, "fd00:ec2::254", port)
    assert reaches(
        egress_of(production({"networkPolicy": {"workloadIdentity": "gke"}}), component), "169.254.169.254", 80
    )


def test_each_reaches_what_it_needs_and_no_more() -> None:
    objects = production({"networkPolicy": {
        "webhooks": {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]},
        "apiServer": {"ports": [6443], "to": [{"ipBlock": {"cidr": "192.0.2.1/32"}}]},
    }})  # fmt: skip
    worker, dispatcher, test = (egress_of(objects, name) for name in ("worker", "dispatcher", "test"))
    for rules in (worker, dispatcher):
        assert reaches(rules, "10.1.2.3", 443)  # S3 and STS
        assert reaches(rules, "10.1.2.3", 6380)  # Redis
        assert not reaches(rules, "203.0.113.9", 443)
        assert any(rule["ports"][0] == {"port": 53, "protocol": "UDP"} for rule in rules)
    assert reaches(dispatcher, "192.0.2.1", 6443) and not reaches(worker, "192.0.2.1", 6443)
    assert reaches(dispatcher, "198.51.100.7", 443) and not reaches(worker, "198.51.100.7", 443)
    assert not any(reaches(test, address, 443) for address in ("10.1.2.3", "192.0.2.1"))
    trial = render(TRIAL)
    pods = labels_of(trial)
    assert egress_of(trial, "redis") == []
    assert selected(egress_of(trial, "worker"), pods["redis"]) == {6379}
    assert selected(egress_of(trial, "dispatcher"), pods["worker"]) == {9090}
    assert selected(egress_of(trial, "worker"), pods["worker"]) == set()
    assert selected(egress_of(trial, "test"), pods["dispatcher"]) == {9090}
    assert selected(egress_of(trial, "test"), pods["redis"]) == set()


def test_traces_reach_the_collector_and_only_where_there_is_one() -> None:
    tracing: Object = {"endpoint": "http://otel.test:4318", "share": 0.05, "to": [{"ipBlock": {"cidr": "10.9.0.0/16"}}]}
    traced, untraced = production({"tracing": tracing}), production()
    for component, name in (("dispatcher", "-dispatcher"), ("worker", "-spot")):
        assert reaches(egress_of(traced, component), "10.9.8.7", 4318)
        assert not reaches(egress_of(untraced, component), "10.9.8.7", 4318)
        seen = environment(only(traced, "Deployment", name)["spec"]["template"]["spec"]["containers"][0])
        assert seen["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel.test:4318"
        assert (seen["OTEL_TRACES_SAMPLER"], seen["OTEL_TRACES_SAMPLER_ARG"]) == ("traceidratio", "0.05")
        container = only(untraced, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        assert not any(variable.startswith("OTEL") for variable in environment(container))


def test_no_rule_is_open_to_everybody() -> None:
    """An empty list of peers would be no restriction at all."""
    for objects in (render(TRIAL), production()):
        for policy in of_kind(objects, "NetworkPolicy"):
            for rule in [*policy["spec"].get("ingress", []), *policy["spec"].get("egress", [])]:
                assert rule.get("from") or rule.get("to")
                assert rule["ports"]


def test_what_selects_pods_finds_them() -> None:
    objects = production()
    pods = labels_of(objects)
    for budget in of_kind(objects, "PodDisruptionBudget"):
        component = budget["metadata"]["labels"]["app.kubernetes.io/component"]
        assert selects(budget["spec"]["selector"], {**pods[component], **_pool_of(budget)})
    assert selects({"matchLabels": only(objects, "Service", "-dispatcher")["spec"]["selector"]}, pods["dispatcher"])
    workers = only(objects, "Service", "-workers")["spec"]
    assert selects({"matchLabels": workers["selector"]}, pods["worker"])
    assert workers["clusterIP"] == "None" and workers["publishNotReadyAddresses"]
    dispatcher = only(objects, "Deployment", "-dispatcher")["spec"]["template"]["spec"]["containers"][0]
    assert environment(dispatcher)["FARM_WORKERS"] == f"http://{FULL}-workers:9090"
    monitor = only(objects, "PodMonitor")["spec"]
    assert {name for name, labels in pods.items() if selects(monitor["selector"], labels)} == {"dispatcher", "worker"}
    assert monitor["podMetricsEndpoints"][0]["port"] == "metrics"


def _pool_of(item: Object) -> dict[str, str]:
    return {key: value for key, value in item["metadata"]["labels"].items() if key == "inpaint-farm/pool"}
