"""Values that cannot be right are refused, and the refusal names them."""

from __future__ import annotations

import pytest

from farm.config import Settings
from helm.settings_schema import BY_THE_CHART, SCHEMA, written
from tests.helm.chart import Object, merged, refusal, values_of

TRIAL = values_of("values-trial")
CPU: Object = TRIAL["pools"][0]


def pool(**changes: object) -> Object:
    return {"pools": [merged(CPU, changes)]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"storee": {}}, ["storee"]),
        ({"store": {"url": "http://bucket"}}, ["store", "url"]),
        ({"store": {"endpoint": "s3.test"}}, ["store", "endpoint"]),
        ({"settings": {"lease_secnds": 3}}, ["settings", "lease_secnds"]),
        ({"settings": {"lease_seconds": "long"}}, ["settings", "lease_seconds"]),
        ({"settings": {"redis_full_at": 2}}, ["settings", "redis_full_at"]),
        ({"settings": {"redis_url": "redis://x"}}, ["settings", "redis_url"]),
        ({"settings": {"drain_seconds": None}}, ["settings", "drain_seconds"]),
        ({"image": {"worker": {"digest": "sha256:abc"}}}, ["image", "worker", "digest"]),
        ({"dispatcher": {"replicas": 0}}, ["dispatcher", "replicas"]),
        ({"autoscaling": {"kind": "kdea"}}, ["autoscaling", "kind"]),
        ({"autoscaling": {"targetDrainSeconds": 0}}, ["autoscaling", "targetDrainSeconds"]),
        ({"networkPolicy": {"metrics": {"from": []}}}, ["networkPolicy", "metrics", "from"]),
        ({"networkPolicy": {"store": {"ports": [70000]}}}, ["networkPolicy", "store", "ports"]),
        ({"tracing": {"share": 0}}, ["tracing", "share"]),
        ({"pools": []}, ["pools"]),
        ({"pools": [{"model": "m"}]}, ["pools", "name"]),
        (pool(name="Spot_1"), ["pools", "name"]),
        (pool(gpu={"count": 8}), ["pools", "gpu", "count"]),
        (pool(backlogShare=0), ["pools", "backlogShare"]),
        (pool(settings={"dtyp": "float16"}), ["pools", "settings", "dtyp"]),
        (pool(nodeSelector={"spot": True}), ["pools", "nodeSelector", "spot"]),
    ],
)
def test_the_schema_refuses(change: Object, words: list[str]) -> None:
    said = refusal(merged(TRIAL, change))
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"redis": {"enabled": False}}, "externalRedis.existingSecret: name the Secret"),
        ({"externalRedis": {"existingSecret": "s"}}, "choose one; two Redis servers would be two queues"),
        (pool(checkpoint={"demo": False}), "pools: cpu has no checkpoint"),
        (pool(checkpoint={"volume": {"emptyDir": {}}}), "has both checkpoint.demo and checkpoint.volume"),
        (pool(minReplicas=9), "minReplicas 9 above maxReplicas 4"),
        (pool(settings={"lora_disk_bytes": 5}), "set loraCache.enabled=true"),
        ({"pools": [CPU, CPU]}, 'the name "cpu" is there twice'),
        ({"autoscaling": {"kind": "hpa"}}, "has minReplicas 0"),
        (
            {"autoscaling": {"kind": "keda", "source": "dispatcher"}, "dispatcher": {"replicas": 2}},
            "set dispatcher.replicas=1",
        ),
        (
            {"autoscaling": {"kind": "keda"}, "pools": [CPU, merged(CPU, {"name": "b"})]},
            "each would answer the same backlog",
        ),
        ({"settings": {"webhook_hosts": ["a.test"]}}, "webhooks are set up, and no network lets them out"),
        ({"webhooks": {"existingSecret": "s"}}, "webhooks are set up, and no network lets them out"),
        ({"tracing": {"endpoint": "http://c:4318"}}, "traces are set up, and no network lets them out"),
        (
            {"monitoring": {"rules": {"enabled": True, "overrides": {"FarmQueuOld": {"for": "1h"}}}}},
            "there is no alert FarmQueuOld; there are FarmDispatcherAbsent",
        ),
    ],
)
def test_the_chart_refuses_what_a_schema_cannot_see(change: Object, sentence: str) -> None:
    assert sentence in refusal(merged(TRIAL, change))


def test_every_setting_can_be_reached() -> None:
    """If this fails: `python helm/settings_schema.py`, or say in BY_THE_CHART which value the setting is made from."""
    assert set(BY_THE_CHART) <= set(Settings.model_fields)
    assert SCHEMA.read_text() == written()
