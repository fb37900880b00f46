"""A worker's life: warm up, be ready, drain, end."""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import Celery, signals

from farm import metrics
from farm.config import Settings
from farm.dispatcher import Dispatcher
from farm.ledger import Ledger, connect
from farm.queue import Hints, make_app
from worker.health import Health
from worker.renderer import WarmRenderer
from worker.runner import Runner
from worker.tasks import register

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Run one worker until it is told to end; the process' exit code.

    Raises Misconfigured or CheckpointInvalid before the first job.
    """
    ledger = Ledger(connect(settings.redis_url))
    store = settings.open_store()
    renderer = WarmRenderer(settings)
    metrics.declare(settings.model, renderer.device)
    health = Health(settings.metrics_host, settings.metrics_port, refresh=renderer.refresh_metrics)
    health.start()
    log.info("metrics on port %d", health.port)
    renderer.warm_up()
    app = make_app(settings)
    register(app, Runner(settings, store, ledger, renderer))
    stop = threading.Event()
    consumer = _Consumer(app, settings, health)
    dispatcher = threading.Thread(
        target=Dispatcher(ledger, Hints(app)).run,
        args=(stop,),
        kwargs={"every_seconds": min(1.0, settings.lease_seconds / 4), "on_back": consumer.consume_anew},
        name="dispatcher",
        daemon=True,
    )
    dispatcher.start()
    try:
        return consumer.run()
    finally:
        stop.set()
        health.stop()


class _Consumer:
    """Celery's worker, its ready and draining states, and a cure for its silence after a broker that was away."""

    def __init__(self, app: Celery, settings: Settings, health: Health):
        self._health = health
        self._loop: Any = None
        signals.worker_ready.connect(self._on_ready, weak=False)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        self._worker = app.Worker(
            pool="threads",
            concurrency=settings.concurrency,
            hostname=settings.worker_name,
            loglevel=settings.log_level,
            quiet=True,
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
        )

    def run(self) -> int:
        self._worker.start()
        return int(self._worker.exitcode or 0)

    def consume_anew(self) -> None:
        """Make Celery connect again.

        A job that ends while Redis is away cannot be acknowledged, so it fills a place of the prefetch window for
        ever; with all places filled Celery asks for nothing and never notices that its connection is dead. An error
        in its own loop makes it reconnect, with an empty window.
        """
        hub = getattr(self._loop, "hub", None)
        if hub is not None:
            hub.call_soon(_reconnect)

    def _on_ready(self, sender: Any = None, **_: object) -> None:
        self._loop = sender
        self._health.ready = True
        metrics.set_worker_state("ready")
        log.info("ready")

    def _on_shutting_down(self, **_: object) -> None:
        self._health.ready = False
        metrics.set_worker_state("draining")
        log.info("draining: the jobs in hand are finished, no new ones taken")


def _reconnect() -> None:
    raise ConnectionResetError("Redis was away: the worker connects anew")
