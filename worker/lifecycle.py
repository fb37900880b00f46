"""A worker's life: warm up, be ready, drain, end."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Protocol

import psutil
from celery import Celery, signals
from celery.apps import worker as celery_worker
from celery.worker.consumer import Consumer

from farm import metrics, tracing
from farm.config import Settings
from farm.errors import FarmError, Misconfigured, QueueForbidden, QueueUnavailable
from farm.health import Health
from farm.ledger import Ledger, connect
from farm.logs import name_process
from farm.models import ModelCard, publish
from farm.queue import make_app
from farm.storage import ObjectStore
from worker.runner import Renderer, Runner
from worker.tasks import register
from worker.watchdog import Watchdog

log = logging.getLogger(__name__)

MEMORY_LOOK_SECONDS = 5.0
OUTAGE_PINGS = 1  # a second without Redis: Celery connects anew, which costs nothing but a moment


class ServedRenderer(Renderer, Protocol):
    """What a worker asks of its renderer beside pictures; `worker.renderer.WarmRenderer` says what each means."""

    on_broken: Callable[[str], object]

    @property
    def rendering(self) -> bool: ...

    @property
    def jobs_at_once(self) -> int: ...

    def lora_targets(self) -> dict[str, Any]: ...

    def warm_up(self) -> None: ...

    def refresh_metrics(self) -> None: ...


def serve(settings: Settings, renderer: ServedRenderer | None = None) -> int:
    """Run one worker until it is told to end; the process' exit code. `renderer`: another than the warm pipeline.

    Raises Misconfigured or CheckpointInvalid before the first job.
    """
    name_process(settings.worker_name)
    tracing.begin("inpaint-farm-worker")
    store = settings.open_store()
    if renderer is None:
        renderer = _renderer(settings)
    metrics.declare(settings.model, renderer.device)
    health = Health(settings.metrics_host, settings.metrics_port, refresh=renderer.refresh_metrics)
    health.start()
    log.info("metrics on port %d", health.port)

    def not_ready(why: str) -> None:
        health.ready = False
        log.critical("not ready any more: %s", why)

    renderer.on_broken = not_ready
    watchdog = Watchdog(
        busy=lambda: renderer.rendering,
        progress=renderer.progress,
        not_ready=lambda: not_ready("the device stands still"),
        stall_seconds=settings.stall_seconds,
    )
    watchdog.start()
    renderer.warm_up()
    _publish_card(settings, store, renderer)
    runner = Runner(settings, store, Ledger(connect(settings.redis_url), worker=settings.worker_name), renderer)
    try:
        return consume(settings, runner, health, concurrency=settings.in_hand(renderer.jobs_at_once))
    finally:
        watchdog.stop()
        health.stop()


def _renderer(settings: Settings) -> ServedRenderer:
    """Of the back end that is set. Seconds of torch or JAX, only where a model is to be rendered with."""
    if settings.backend == "jax":
        if find_spec("jax") is None or find_spec("torchax") is None:
            raise Misconfigured("FARM_BACKEND is jax, which is not installed: pip install 'inpaint-farm[worker,jax]'")
        from worker.jax_renderer import JaxRenderer

        return JaxRenderer(settings)
    from worker.renderer import WarmRenderer

    return WarmRenderer(settings)


def _publish_card(settings: Settings, store: ObjectStore, renderer: ServedRenderer) -> None:
    """Let clients judge jobs for this model; a farm works without."""
    targets = renderer.lora_targets()
    card = ModelCard(settings.model, renderer.checkpoint_sha256, settings.buckets(), targets)
    try:
        publish(store, settings.store, card)
    except FarmError as error:
        log.warning(
            "the model's card is not published (%s: %s); clients cannot check LoRAs against it", error.code, error
        )


def consume(settings: Settings, runner: Runner, health: Health, *, concurrency: int) -> int:
    """Take hints and run them until told to end; the process' exit code."""
    app = make_app(settings)
    register(app, runner)
    stop = threading.Event()
    consumer = _Consumer(app, settings, runner, health, concurrency)
    watch = threading.Thread(
        target=_watch_broker, args=(Ledger(connect(settings.redis_url)), stop, consumer), name="broker", daemon=True
    )
    watch.start()
    if settings.recycle_bytes:
        limit = settings.recycle_bytes
        threading.Thread(target=watch_memory, args=(limit, stop), name="memory", daemon=True).start()
    try:
        return consumer.run()
    finally:
        stop.set()


def _watch_broker(ledger: Ledger, stop: threading.Event, consumer: _Consumer) -> None:
    """Ask once a second whether Redis is there; when it is back after an outage, have Celery connect again."""
    missed = 0
    while not stop.wait(1.0):
        try:
            ledger.ping()
        except (QueueUnavailable, QueueForbidden) as error:
            missed += 1
            if missed == OUTAGE_PINGS:
                log.warning("%s: %s", error.code, error)
        else:
            if missed >= OUTAGE_PINGS:
                consumer.consume_anew()
            missed = 0


def watch_memory(limit: int, stop: threading.Event, *, look_seconds: float = MEMORY_LOOK_SECONDS) -> None:
    """Have this process drain once it holds more than `limit` bytes: what leaks is given back by its end."""
    own = psutil.Process()
    while not stop.wait(look_seconds):
        if (held := own.memory_info().rss) > limit:
            log.warning("the process holds %d bytes, more than FARM_RECYCLE_BYTES (%d): it drains", held, limit)
            os.kill(os.getpid(), signal.SIGTERM)
            return


class HintConsumer(Consumer):
    """Celery's consumer, but a message that is no hint is dropped, counted, and nothing more.

    By itself Celery dies of a body that is no call and puts it back for the next worker to die of; and a call that
    brings others with it (a chain, a callback) is never acknowledged when those cannot be made.
    """

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)

        def guarded(message: Any) -> None:
            try:
                _, _, embedded = message.payload
                if any(embedded.values()):
                    raise ValueError("it brings other calls with it")
                handle(message)
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the worker
                log.warning("dropped a message that is no hint (%s)", type(error).__name__)
                metrics.dropped_messages.inc()
                message.reject_log_error(log, self.connection_errors)

        return guarded

    def on_unknown_message(self, *args: Any) -> None:
        metrics.dropped_messages.inc()
        super().on_unknown_message(*args)

    def on_unknown_task(self, *args: Any) -> None:
        metrics.dropped_messages.inc()
        super().on_unknown_task(*args)

    def on_invalid_task(self, *args: Any) -> None:
        metrics.dropped_messages.inc()
        super().on_invalid_task(*args)


class _Consumer:
    """Celery's worker, its ready and draining states, and a cure for its silence after a broker that was away."""

    def __init__(self, app: Celery, settings: Settings, runner: Runner, health: Health, concurrency: int):
        self._runner, self._health = runner, health
        self._loop: Any = None
        signals.worker_ready.connect(self._on_ready, weak=False)
        signals.worker_shutting_down.connect(self._on_shutting_down, weak=False)
        celery_worker.safe_say = _log_what_is_said  # Celery would print it between the lines of JSON
        self._worker = app.Worker(
            pool="threads",
            concurrency=concurrency,
            hostname=settings.worker_name,
            loglevel=settings.log_level,
            quiet=True,
            consumer_cls=HintConsumer,
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
        log.info("draining: what fits is finished, the rest saved and given back")
        self._runner.drain()


def _log_what_is_said(message: str, *_: object) -> None:
    log.info("%s", message)


def _reconnect() -> None:
    raise ConnectionResetError("Redis was away: the worker connects anew")
