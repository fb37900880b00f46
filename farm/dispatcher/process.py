"""`farm dispatcher`: one process of the control plane, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading

from farm import metrics
from farm.config import Settings
from farm.dispatcher.dispatcher import Dispatcher
from farm.dispatcher.gauges import Gauges
from farm.health import Health
from farm.ledger import Batches, Window, connect
from farm.queue import Hints, make_app
from farm.shards import Shelf
from farm.storage import require_create_once
from farm.tenants import Tenants

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Run until told to end. Raises Misconfigured before the first round."""
    client = connect(settings.redis_url)
    store = settings.open_store()
    require_create_once(store, settings.store)  # asked here, for the whole farm: only a dispatcher may delete the probe
    shelf = Shelf(store, settings.store)
    gauges = Gauges(Window(client), Batches(client), (settings.model,))
    metrics.declare_queue(settings.model)
    health = Health(settings.metrics_host, settings.metrics_port, refresh=lambda: None)
    policies = Tenants.load(settings, with_keys=False).policies or {}
    weights = {tenant: policy.weight for tenant, policy in policies.items()}
    hints = Hints(make_app(settings))
    dispatcher = Dispatcher(client, hints, shelf, weights=weights, reconcile_seconds=settings.reconcile_seconds)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    health.start()
    log.info("dispatching; metrics on port %d", health.port)

    def after_round() -> None:
        health.ready = True
        gauges.refresh()

    dispatcher.run(stop, on_round=after_round)
    health.stop()
    return 0
