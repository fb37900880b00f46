"""The chart as Helm renders it, and what the objects must satisfy."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import yaml
from kubernetes_validate import utils

CHART = Path(__file__).resolve().parents[2] / "helm" / "inpaint-farm"
OLDEST, NEWEST = "1.31", kubernetes_validate.latest_version()
RELEASE, NAMESPACE = "trial", "farm"
CUSTOM = {
    "ScaledObject": "cloudcoil.models.keda.v1alpha1",
    "PodMonitor": "cloudcoil.models.prometheus_operator.v1",
    "PrometheusRule": "cloudcoil.models.prometheus_operator.v1",
}

Object = dict[str, Any]

# The schemas of one version are one large file; it is read once, not once an object.
utils.schema_contents = cache(utils.schema_contents)


def values_of(name: str) -> Object:
    """One of the values files that the chart ships."""
    found: Object = yaml.safe_load((CHART / f"{name}.yaml").read_text())
    return found


def merged(base: Object, *changes: Object) -> Object:
    """`base` with `changes` laid over it as Helm does: maps merge, everything else is replaced."""
    result = dict(base)
    for change in changes:
        for key, value in change.items():
            old = result.get(key)
            result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@cache
def _chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def render(values: Object) -> list[Object]:
    """Every object of a release. Raises HelmError for values that the chart refuses."""
    texts = _chart().render(values, name=RELEASE, namespace=NAMESPACE)
    return [
        found
        for path, text in sorted(texts.items())
        if path.endswith(".yaml")
        for found in yaml.load_all(text, Loader=yaml.CSafeLoader)
        if found is not None
    ]


def notes(values: Object) -> str:
    return _chart().render(values, name=RELEASE, namespace=NAMESPACE)["inpaint-farm/templates/NOTES.txt"]


def refusal(values: Object) -> str:
    """What the chart says to values that it does not take."""
    try:
        render(values)
    except helm_python.HelmError as error:
        return str(error)
    raise AssertionError("the chart took these values")


def of_kind(objects: list[Object], kind: str, name: str = "") -> list[Object]:
    return [found for found in objects if found["kind"] == kind and found["metadata"]["name"].endswith(name)]


def only(objects: list[Object], kind: str, name: str = "") -> Object:
    (found,) = of_kind(objects, kind, name)
    return found


def pod_specs(objects: list[Object]) -> list[tuple[str, Object]]:
    """(component, pod spec) of everything that runs."""
    found = []
    for item in objects:
        pod = item if item["kind"] == "Pod" else item.get("spec", {}).get("template")
        if pod:
            found.append((pod["metadata"]["labels"]["app.kubernetes.io/component"], pod["spec"]))
    return found


def environment(container: Object) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


@cache
def _problem(text: str, version: str) -> str:
    item = json.loads(text)
    name = f"{item['kind']}/{item['metadata']['name']}"
    if item["kind"] in CUSTOM:  # imported here: it takes seconds, and most tests ask for none
        return _custom_problem(name, getattr(import_module(CUSTOM[item["kind"]]), item["kind"]), item)
    try:
        utils.validate(item, version, strict=True)
    except utils.ValidationError as error:
        return f"{name} at {'.'.join(map(str, error.absolute_path))}: {error.message[:300]}"
    return ""


def _custom_problem(name: str, model: Any, item: Object) -> str:
    """pydantic finds wrong and missing values; a key that does not come back is one that the CRD does not have."""
    try:
        back = model.model_validate(item).model_dump(mode="json", by_alias=True, exclude_unset=True)
    except ValueError as error:
        return f"{name}: {error}"
    unknown = sorted(_paths(item) - _paths(back))
    return f"{name}: the CRD has no {', '.join(unknown)}" if unknown else ""


def _paths(value: Any, at: str = "") -> set[str]:
    if isinstance(value, dict):
        return {at} | {path for key, inner in value.items() for path in _paths(inner, f"{at}.{key}")}
    if isinstance(value, list):
        return {at} | {path for index, inner in enumerate(value) for path in _paths(inner, f"{at}[{index}]")}
    return {at}


def problems(objects: Iterable[Object], version: str) -> list[str]:
    """What strict validation for that version of Kubernetes finds in them."""
    found = (_problem(json.dumps(item, sort_keys=True), version) for item in objects)
    return [problem for problem in found if problem]


def metrics_in(text: str) -> set[str]:
    return set(re.findall(r"\bfarm_[a-z_]+", text))
