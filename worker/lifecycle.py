"""A worker's life: warm up, be ready, drain, end."""

from __future__ import annotations

import logging
import threading

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
    dispatcher = threading.Thread(
        target=Dispatcher(ledger, Hints(app)).run,
        args=(stop,),
        kwargs={"every_seconds": min(1.0, settings.lease_seconds / 4)},
        name="dispatcher",
        daemon=True,
    )
    dispatcher.start()
    try:
        return _consume(app, settings, health)
    finally:
        stop.set()
        health.stop()


def _consume(app: Celery, settings: Settings, health: Health) -> int:
    def on_ready(**_: object) -> None:
        health.ready = True
        metrics.set_worker_state("ready")
        log.info("ready")

    def on_shutting_down(**_: object) -> None:
        health.ready = False
        metrics.set_worker_state("draining")
        log.info("draining: the jobs in hand are finished, no new ones taken")

    signals.worker_ready.connect(on_ready, weak=False)
    signals.worker_shutting_down.connect(on_shutting_down, weak=False)
    worker = app.Worker(
        pool="threads",
        concurrency=settings.concurrency,
        hostname=f"{settings.worker_name}@%h",
        loglevel=settings.log_level,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)
