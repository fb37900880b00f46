"""Tells Kubernetes which workers are idle, so that scale-in takes those first.

A ReplicaSet that shrinks deletes the pods with the lowest `controller.kubernetes.io/pod-deletion-cost` first, among
those that are ready (KEP-2255). Workers name themselves after their pods when they claim jobs, so the index knows whose
hands are full. An annotation is written when a worker's answer changes, not at every look.
"""

from __future__ import annotations

import logging
import time
from typing import Any
from urllib.error import HTTPError

from farm.dispatcher.lead import Lead
from farm.kubernetes import Pods
from farm.ledger import Batches, Window

log = logging.getLogger(__name__)

COST = "controller.kubernetes.io/pod-deletion-cost"
BUSY, IDLE = "100", "0"
EVERY_SECONDS = 10.0
_PAUSE_SECONDS = 300.0  # after the API server refused, or was away
_OF = "app.kubernetes.io/instance"  # which release a pod is of
_WORKERS = {"app.kubernetes.io/component": "worker"}


class DeletionCost:
    """Marks the workers of the release that the pod `own` is of, while this dispatcher leads."""

    def __init__(self, pods: Pods, own: str, window: Window, batches: Batches, lead: Lead):
        self._pods, self._own = pods, own
        self._window, self._batches, self._lead = window, batches, lead
        self._not_before = 0.0

    def due(self) -> bool:
        return time.monotonic() >= self._not_before

    def mark(self) -> int:
        """Annotate the workers whose answer changed; how many. Raises QueueUnavailable."""
        self._not_before = time.monotonic() + EVERY_SECONDS
        if not self._lead.held():
            return 0
        busy, count = self._holding(), 0
        try:
            release = self._pods.get(self._own)["metadata"]["labels"][_OF]
            for pod in self._pods.list({_OF: release, **_WORKERS}):
                count += self._marked(pod["metadata"], busy)
        except (OSError, KeyError) as error:
            why = f"{type(error).__name__}: {error}"
            log.warning("idle workers cannot be marked (%s); scale-in may take busy ones", why)
            self._not_before = time.monotonic() + _PAUSE_SECONDS
        return count

    def _holding(self) -> set[str]:
        """Names of the workers that hold jobs."""
        models = {model for _, model in self._batches.live()}
        return {worker for model in models for worker in self._window.holders(model)}

    def _marked(self, pod: dict[str, Any], busy: set[str]) -> bool:
        cost = BUSY if pod["name"] in busy else IDLE
        if pod.get("annotations", {}).get(COST, IDLE) == cost:
            return False
        try:
            self._pods.annotate(pod["name"], {COST: cost})
        except HTTPError as error:
            if error.code != 404:  # it is gone since
                raise
        return True
