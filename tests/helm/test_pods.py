"""What pods are given: settings that the farm reads as meant, restricted security, time to drain, the right scale."""

from __future__ import annotations

import re

import pytest

from farm.config import Settings
from tests.helm.chart import (
    CHART,
    NAMESPACE,
    RELEASE,
    Object,
    environment,
    merged,
    of_kind,
    only,
    pod_specs,
    render,
    values_of,
)

TRIAL, PRODUCTION = values_of("values-trial"), values_of("values-production")
FULL = f"{RELEASE}-inpaint-farm"


def production(*changes: Object) -> list[Object]:
    return render(merged(PRODUCTION, *changes))


def settings_of(objects: list[Object], deployment: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a process of this Deployment reads from its environment."""
    container = only(objects, "Deployment", deployment)["spec"]["template"]["spec"]["containers"][0]
    shared = only(objects, "ConfigMap", "-settings")["data"]
    seen = {**shared, **environment(container)}
    unknown = {name for name in seen if name.startswith("FARM_")} - {f"FARM_{n.upper()}" for n in Settings.model_fields}
    assert unknown <= {"FARM_WORKERS"}  # an option of `farm top`
    seen["FARM_REDIS_URL"] = seen.get("FARM_REDIS_URL") or "rediss://role:secret@redis.test:6380/0"
    for name, value in seen.items():
        monkeypatch.setenv(name, value.replace("$(REDIS_PASSWORD)", "secret"))
    return Settings()


def test_a_worker_reads_the_settings_as_they_were_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    given: Object = {
        "settings": {"lease_seconds": 45, "redis_full_at": 0.75, "max_image_bytes": 268435456},
        "store": {"endpoint": "https://s3.test", "pathStyle": True},
        "pools": [
            {
                "name": "big",
                "model": "sdxl-inpaint",
                "settings": {"lora_ram_bytes": 68719476736, "size_buckets": ["512x512", "640x384"], "drain_seconds": 5},
            }
        ],
    }
    read = settings_of(production(given), "-big", monkeypatch)
    assert (read.lease_seconds, read.redis_full_at, read.max_image_bytes) == (45, 0.75, 268435456)
    assert (read.lora_ram_bytes, read.size_buckets) == (68719476736, ("512x512", "640x384"))
    assert (read.drain_seconds, read.tenant_quota) == (5, 2000000)
    assert (read.model, str(read.model_path)) == ("sdxl-inpaint", "/models/sd15-inpaint")
    assert (read.store, read.s3_endpoint, read.s3_path_style) == ("s3://example-farm/farm", "https://s3.test", True)
    assert str(read.tenants) == "/etc/inpaint-farm/tenants/tenants.json"
    assert str(read.lora_disk_path) == "/var/cache/inpaint-farm"
    assert read.metrics_port == 9090


def test_the_built_in_redis_is_reached_by_role(monkeypatch: pytest.MonkeyPatch) -> None:
    objects = render(TRIAL)
    read = settings_of(objects, "-dispatcher", monkeypatch)
    assert read.redis_url == f"redis://dispatcher:secret@{FULL}-redis:6379/0"
    assert read.allow_plain_redis
    assert settings_of(objects, "-cpu", monkeypatch).redis_url.startswith("redis://worker:")
    service = only(objects, "Service", "-redis")
    assert service["metadata"]["name"] == f"{FULL}-redis"
    keys = only(objects, "Secret", "-redis")["data"]
    assert keys.keys() == {"sdk-password", "worker-password", "dispatcher-password"}
    assert len(set(keys.values())) == 3


def test_roles_take_their_own_keys() -> None:
    objects = production({"worker": {"existingStoreSecret": "w"}, "store": {"existingSecret": "all"}})
    for name, redis_key, secret in (("-dispatcher", "dispatcher-url", "all"), ("-spot", "worker-url", "w")):
        container = only(objects, "Deployment", name)["spec"]["template"]["spec"]["containers"][0]
        sources = {entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"]
                   if "secretKeyRef" in entry.get("valueFrom", {})}  # fmt: skip
        assert sources["FARM_REDIS_URL"] == {"name": "farm-redis", "key": redis_key}
        assert sources["AWS_SECRET_ACCESS_KEY"] == {"name": secret, "key": "AWS_SECRET_ACCESS_KEY"}
        assert "value" not in next(entry for entry in container["env"] if entry["name"] == "FARM_REDIS_URL")


def test_only_the_dispatcher_holds_what_signs_webhooks() -> None:
    webhooks: Object = {
        "webhooks": {"existingSecret": "hooks"},
        "networkPolicy": {"webhooks": {"to": [{"ipBlock": {"cidr": "198.51.100.0/24"}}]}},
    }
    with_tenants, without = production(webhooks), production(webhooks, {"tenants": {"existingSecret": ""}})
    for objects in (with_tenants, without):
        holders = {component for component, spec in pod_specs(objects) if "'hooks'" in str(spec.get("volumes"))}
        assert holders == {"dispatcher"}
    variable = "FARM_WEBHOOK_SECRET_FILE"
    for objects, path in ((with_tenants, None), (without, "/etc/inpaint-farm/webhooks/secret")):
        container = only(objects, "Deployment", "-dispatcher")["spec"]["template"]["spec"]["containers"][0]
        assert environment(container).get(variable) == path


# Restricted pod security: https://kubernetes.io/docs/concepts/security/pod-security-standards/
_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@pytest.mark.parametrize("values", [TRIAL, PRODUCTION], ids=["trial", "production"])
def test_every_pod_keeps_to_the_restricted_standard(values: Object) -> None:
    specs = pod_specs(render(values))
    assert {component for component, _ in specs} >= {"dispatcher", "worker", "test"}
    for component, spec in specs:
        security = spec["securityContext"]
        assert security["runAsNonRoot"] and security["runAsUser"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for volume in spec.get("volumes", []):
            (kind,) = volume.keys() - {"name"}
            assert kind in _VOLUMES
            assert kind != "emptyDir" or volume["emptyDir"]["sizeLimit"]
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            own = container["securityContext"]
            assert own["readOnlyRootFilesystem"] and not own["allowPrivilegeEscalation"] and not own["privileged"]
            assert own["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert not any("hostPort" in port for port in container.get("ports", []))
        assert spec["automountServiceAccountToken"] is (component == "dispatcher")


def test_only_the_dispatcher_may_touch_pods_and_only_for_their_deletion_cost() -> None:
    objects = production()
    assert only(objects, "Role")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "patch"]}
    ]
    (subject,) = only(objects, "RoleBinding")["subjects"]
    assert subject == {"kind": "ServiceAccount", "name": f"{FULL}-dispatcher", "namespace": NAMESPACE}
    assert not of_kind(objects, "ClusterRole")
    off = production({"dispatcher": {"podDeletionCost": {"enabled": False}}})
    assert not of_kind(off, "Role")
    assert not any(spec["automountServiceAccountToken"] for _, spec in pod_specs(off))


@pytest.mark.parametrize(("drain", "save", "grace"), [(25, 20, 45), (0.5, 10, 11), (600, 20, 620)])
def test_the_grace_period_covers_the_drain_and_the_saving(drain: float, save: int, grace: int) -> None:
    pool: Object = {"pools": [{"name": "a", "settings": {"drain_seconds": drain}, "saveSeconds": save}]}
    spec = only(production(pool), "Deployment", "-a")["spec"]["template"]["spec"]
    assert spec["terminationGracePeriodSeconds"] == grace
    shared = production({"settings": {"drain_seconds": drain}, "worker": {"saveSeconds": save}})
    assert only(shared, "Deployment", "-spot")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == grace


def test_probes_tell_warm_ready_and_alive_apart() -> None:
    deployment = only(production({"worker": {"startupSeconds": 603}}), "Deployment", "-spot")
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    startup = container["startupProbe"]
    assert startup["httpGet"]["path"] == container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert startup["periodSeconds"] * startup["failureThreshold"] == 605
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"metrics": 9090}


def test_a_gpu_pool_asks_for_one_gpu_and_a_cpu_pool_for_none() -> None:
    gpu = only(production(), "Deployment", "-spot")["spec"]["template"]["spec"]
    assert gpu["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert gpu["containers"][0]["image"] == "registry.example.com/inpaint-farm/worker:0.1.0"
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in gpu["tolerations"]
    cpu = only(render(TRIAL), "Deployment", "-cpu")["spec"]["template"]["spec"]
    assert set(cpu["containers"][0]["resources"]["limits"]) == {"memory"}
    assert cpu["containers"][0]["image"] == "inpaint-farm/worker-cpu:0.1.0"
    assert "tolerations" not in cpu


def test_an_image_by_digest_has_no_tag() -> None:
    digest = "sha256:" + 64 * "b"
    objects = production({"image": {"control": {"digest": digest, "tag": "x", "registry": "other.test"}}})
    container = only(objects, "Deployment", "-dispatcher")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == f"other.test/inpaint-farm/control@{digest}"


def test_what_a_pool_says_wins_even_if_it_is_nothing() -> None:
    usual: Object = {
        "minReplicas": 2,
        "tolerations": [{"key": "a", "operator": "Exists"}],
        "priorityClassName": "high",
        "checkpoint": {"demo": True},
        "gpu": {"count": 0},
        "settings": {"concurrency": 3},
        "loraCache": {"enabled": True},
    }
    own: Object = {
        "name": "a",
        "minReplicas": 0,
        "tolerations": [],
        "priorityClassName": "",
        "settings": {"dtype": "auto"},
        "loraCache": {"enabled": False},
    }
    objects = render(merged(TRIAL, {"worker": usual, "pools": [own], "autoscaling": {"kind": "keda"}}))
    spec = only(objects, "Deployment", "-a")["spec"]["template"]["spec"]
    assert only(objects, "ScaledObject")["spec"]["minReplicaCount"] == 0
    assert not {"tolerations", "priorityClassName"} & spec.keys()
    assert not any(volume["name"] == "lora-cache" for volume in spec["volumes"])
    seen = environment(spec["containers"][0])
    assert (seen["FARM_CONCURRENCY"], seen["FARM_DTYPE"]) == ("3", "auto")


# Scale


@pytest.mark.parametrize(
    ("drain", "share", "target", "hold"),
    [(1800, 1, 1800, 1800), (3600, 0.8, 4500, 3600), (1000, 0.3, 3334, 1000), (86400, 1, 86400, 3600)],
)
def test_workers_are_backlog_divided_by_the_time_to_drain(drain: int, share: float, target: int, hold: int) -> None:
    pools: Object = {"pools": [{"name": "a", "model": "m", "backlogShare": share, "minReplicas": 1, "maxReplicas": 9}]}
    by_keda = only(production(pools, {"autoscaling": {"kind": "keda", "targetDrainSeconds": drain}}), "ScaledObject")
    (trigger,) = by_keda["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    assert trigger["metricType"] == "AverageValue"
    labels = f'namespace="{NAMESPACE}",model="m",growth="true"'
    assert trigger["metadata"]["query"] == f"max(farm_backlog_gpu_seconds{{{labels}}})"
    assert trigger["metadata"]["threshold"] == str(target)
    assert (by_keda["spec"]["minReplicaCount"], by_keda["spec"]["maxReplicaCount"]) == (1, 9)
    behavior = by_keda["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == hold

    by_hpa = only(production(pools, {"autoscaling": {"kind": "hpa", "targetDrainSeconds": drain}}),
                  "HorizontalPodAutoscaler")["spec"]  # fmt: skip
    external = by_hpa["metrics"][0]["external"]
    selector = {"matchLabels": {"model": "m", "growth": "true"}}
    assert external["metric"] == {"name": "farm_backlog_gpu_seconds", "selector": selector}
    assert external["target"] == {"type": "AverageValue", "averageValue": str(target)}
    assert by_hpa["behavior"] == behavior


def test_a_pool_may_have_its_own_time_and_the_hold_may_be_set() -> None:
    pools: Object = {"pools": [{"name": "a", "targetDrainSeconds": 60}]}
    found = only(production(pools, {"autoscaling": {"scaleDown": {"stabilizationSeconds": 0}}}), "ScaledObject")["spec"]
    assert found["triggers"][0]["metadata"]["threshold"] == "60"
    behavior = found["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] == 0


def test_keda_can_ask_the_dispatcher_itself() -> None:
    values = merged(TRIAL, {"autoscaling": {"kind": "keda", "source": "dispatcher"}})
    objects = render(values)
    metadata = only(objects, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    assert metadata["url"] == f"http://{FULL}-dispatcher.{NAMESPACE}.svc:9090/metrics"
    assert metadata["valueLocation"] == 'farm_backlog_gpu_seconds{model="sd15-inpaint",growth="true"}'
    assert metadata["format"] == "prometheus"
    assert only(objects, "Service", "-dispatcher")["spec"]["ports"][0]["port"] == 9090
    peers = only(objects, "NetworkPolicy", "-farm")["spec"]["ingress"][0]["from"]
    assert "keda" in str(peers)


def test_the_autoscaler_owns_the_count() -> None:
    assert "replicas" not in only(production(), "Deployment", "-spot")["spec"]
    fixed = production({"autoscaling": {"kind": "none"}, "worker": {"replicas": 3}})
    assert only(fixed, "Deployment", "-spot")["spec"]["replicas"] == 3
    for name in ("-spot", "-steady"):
        found = only(production(), "ScaledObject", name)
        assert found["spec"]["scaleTargetRef"]["name"] == only(production(), "Deployment", name)["metadata"]["name"]


def test_the_chart_ships_the_redis_users_of_the_policies() -> None:
    policies = CHART.parent / "policies" / "redis-users.acl"
    assert (CHART / "files" / "redis-users.acl").read_text() == policies.read_text()


def test_names_fit_what_kubernetes_allows() -> None:
    objects = production({"fullnameOverride": "x" * 60, "pools": [{"name": "p" * 20}]})
    for item in objects:
        assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", item["metadata"]["name"])
