"""Helm lints and renders the chart in every combination, and every object is valid where it will run."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import combinations, product

import helm_python
import pytest
import yaml

from tests.helm.chart import CHART, NEWEST, OLDEST, Object, merged, notes, of_kind, problems, render, values_of

TRIAL, PRODUCTION = values_of("values-trial"), values_of("values-production")
CHECKPOINT: Object = {"volume": {"persistentVolumeClaim": {"claimName": "models"}}, "path": "sd15"}

REDIS: dict[str, Object] = {
    "redis inside, persistent": {"redis": {"enabled": True, "persistence": {"enabled": True, "storageClass": "fast"}}},
    "redis inside, in memory": {
        "redis": {"enabled": True, "existingSecret": "mine", "persistence": {"enabled": False}}
    },
    "redis outside": {"redis": {"enabled": False}, "externalRedis": {"existingSecret": "redis", "caSecret": "ca"}},
}
SCALING: dict[str, Object] = {
    "fixed": {"autoscaling": {"kind": "none"}},
    "KEDA by Prometheus": {"autoscaling": {"kind": "keda", "prometheus": {"authenticationRef": "token"}}},
    "KEDA by dispatcher": {"autoscaling": {"kind": "keda", "source": "dispatcher"}, "dispatcher": {"replicas": 1}},
    "HPA": {"autoscaling": {"kind": "hpa"}, "worker": {"minReplicas": 1}},
}
MONITORING: dict[str, Object] = {
    "watched": {
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "p"}},
            "rules": {"enabled": True, "runbookUrl": "https://x.test/RUNBOOK.md"},
            "dashboard": {"enabled": True, "annotations": {"folder": "Farm"}},
        }
    },
    "unwatched": {},
}
POOLS: dict[str, Object] = {
    "one": {"pools": [{"name": "gpu", "checkpoint": CHECKPOINT}]},
    "many": {
        "pools": [
            {"name": "cpu", "model": "small", "gpu": {"count": 0}, "checkpoint": {"demo": True}},
            {
                "name": "spot",
                "backlogShare": 0.7,
                "checkpoint": CHECKPOINT,
                "gpu": {"resource": "amd.com/gpu"},
                "nodeSelector": {"spot": "yes"},
                "tolerations": [{"key": "spot", "operator": "Exists"}],
                "affinity": {"nodeAffinity": {}},
                "loraCache": {"enabled": True, "size": "90Gi"},
                "settings": {"lora_disk_bytes": 85899345920, "drain_seconds": 90.5, "dtype": "bfloat16"},
                "priorityClassName": "low",
                "runtimeClassName": "nvidia",
            },
            {
                "name": "steady",
                "backlogShare": 0.3,
                "checkpoint": {"volume": {"image": {"reference": "models/sd15@sha256:00"}}},
                "loraCache": {"enabled": True, "volume": {"persistentVolumeClaim": {"claimName": "loras"}}},
            },
        ]
    },
}
REST: dict[str, Object] = {
    "all of the rest": {
        "image": {"registry": "r.test", "pullSecrets": [{"name": "pull"}], "control": {"digest": "sha256:" + 64 * "a"}},
        "store": {"url": "s3://b/p", "endpoint": "https://s3", "region": "r", "pathStyle": True, "existingSecret": "s"},
        "tenants": {"existingSecret": "tenants"},
        "webhooks": {"existingSecret": "webhooks"},
        "networkPolicy": {
            "workloadIdentity": "gke",
            "webhooks": {"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]},
            "clients": [{"podSelector": {}}],
            "extraEgress": [{"ports": [{"port": 4317}]}],
        },
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "dispatcher": {"extraEnv": [{"name": "A", "value": "b"}], "nodeSelector": {"a": "b"}},
    },
    "none of the rest": {
        "networkPolicy": {"enabled": False},
        "worker": {"podDisruptionBudget": {"enabled": False}, "serviceAccount": {"create": False, "name": "mine"}},
        "dispatcher": {"podDeletionCost": {"enabled": False}, "serviceAccount": {"create": False, "name": "mine"}},
    },
}  # fmt: skip

CHOICES = (REDIS, SCALING, MONITORING, POOLS, REST)


def _pairs(row: tuple[str, ...]) -> set[tuple[tuple[int, str], ...]]:
    return set(combinations(enumerate(row), 2))


def _all_pairs() -> list[tuple[str, ...]]:
    """Few rows in which every two choices come together once: what `make test` has time for."""
    rows = list(product(*CHOICES))
    left = set().union(*map(_pairs, rows))
    chosen = []
    while left:
        best = max(rows, key=lambda row: len(_pairs(row) & left))
        left -= _pairs(best)
        chosen.append(best)
    return chosen


@cache
def rendered(*row: str) -> tuple[Object, ...]:
    return tuple(render(combined(*row)))


def combined(*row: str) -> Object:
    return merged({}, *(choice[name] for choice, name in zip(CHOICES, row, strict=True)))


@pytest.fixture(params=["pairs", pytest.param("product", marks=pytest.mark.full)])
def table(request: pytest.FixtureRequest) -> list[tuple[str, ...]]:
    """The rows of choices. The whole product is for `make test-full`."""
    return _all_pairs() if request.param == "pairs" else list(product(*CHOICES))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_object_of_every_combination_is_valid(table: list[tuple[str, ...]], version: str) -> None:
    found = {row: problems(rendered(*row), version) for row in table}
    assert {row: some for row, some in found.items() if some} == {}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("name", ["values-trial", "values-production"])
def test_every_object_of_the_shipped_values_is_valid(name: str, version: str) -> None:
    assert problems(render(values_of(name)), version) == []


def test_the_validation_can_fail() -> None:
    objects = render(merged(PRODUCTION, {"autoscaling": {"kind": "keda"}}))
    of_kind(objects, "Deployment")[0]["spec"]["replica"] = 3
    of_kind(objects, "ScaledObject")[0]["spec"]["minReplicas"] = 3
    of_kind(objects, "PodMonitor")[0]["spec"]["podMetricsEndpoints"] = "metrics"
    of_kind(objects, "PrometheusRule")[0]["spec"]["groups"][0]["rules"][0]["fro"] = "3m"
    found = problems(objects, NEWEST)
    assert len(found) == 4, found
    for word in ("replica", "minReplicas", "podMetricsEndpoints", "fro"):
        assert any(word in problem for problem in found), (word, found)


@pytest.mark.parametrize("name", ["values-trial", "values-production"])
def test_helm_lints_the_shipped_values(name: str) -> None:
    report = helm_python.lint(CHART, values_of(name), strict=True, namespace="farm")
    worse_than_info = [message for message in report["messages"] if message["severity"] > 1]
    assert not report["errors"]
    assert not worse_than_info


def test_helm_lints_every_combination(table: list[tuple[str, ...]]) -> None:
    for row in table:
        assert not helm_python.lint(CHART, combined(*row), strict=True, namespace="farm")["errors"], row


def test_names_are_unique_and_in_the_release_namespace(table: list[tuple[str, ...]]) -> None:
    for row in table:
        keys = [(item["kind"], item["metadata"]["name"]) for item in rendered(*row)]
        assert len(keys) == len(set(keys)), row
        assert {item["metadata"]["namespace"] for item in rendered(*row)} == {"farm"}, row


def test_what_was_chosen_is_there_and_nothing_else(table: list[tuple[str, ...]]) -> None:
    for row in table:
        redis, scaling, monitoring, pools, rest = row
        counts = Counter(item["kind"] for item in rendered(*row))
        workers = len(POOLS[pools]["pools"])
        everything = rest == "all of the rest"
        expected = {
            "StatefulSet": redis != "redis outside",
            "Deployment": 1 + workers,
            "ScaledObject": scaling.startswith("KEDA") * workers,
            "HorizontalPodAutoscaler": (scaling == "HPA") * workers,
            "PodMonitor": monitoring == "watched",
            "PrometheusRule": monitoring == "watched",
            "Role": everything,
            "RoleBinding": everything,
            "ServiceAccount": 2 * everything,
            "NetworkPolicy": everything * (5 + (redis != "redis outside")),
            "PodDisruptionBudget": everything * workers + (scaling != "KEDA by dispatcher"),
        }
        assert {kind: counts[kind] for kind in expected} == expected, row


def test_the_notes_say_what_was_installed() -> None:
    text = notes(PRODUCTION)
    assert "spot: sd15-inpaint, 0 to 40 workers, to drain its backlog within 3600 s" in text
    assert "WARNING" not in text
    assert "sdk-password" in notes(TRIAL)


def test_the_chart_is_packed_with_all_its_files() -> None:
    names = {item["name"] for item in helm_python.Chart.load(CHART).files}
    assert {"RUNBOOK.md", "METRICS.md", "rules/alerts.yaml", "files/redis-users.acl"} <= names


def test_default_values_and_their_comments_parse_alike() -> None:
    """The anchors in values.yaml are YAML's own; Helm reads the same."""
    assert helm_python.Chart.load(CHART).values == yaml.safe_load((CHART / "values.yaml").read_text())
