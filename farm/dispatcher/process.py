"""`farm dispatcher`: one process of the control plane, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import logging
import signal
import threading
from contextlib import suppress

from farm import metrics, tracing
from farm.config import Settings
from farm.dispatcher.aside import Aside
from farm.dispatcher.deletion_cost import DeletionCost
from farm.dispatcher.dispatcher import Dispatcher
from farm.dispatcher.gauges import Gauges
from farm.dispatcher.webhooks import Webhooks
from farm.errors import QueueUnavailable, StoreUnavailable
from farm.health import Health
from farm.kubernetes import Pods
from farm.ledger import Batches, Window, connect
from farm.logs import name_process
from farm.queue import Hints, make_app
from farm.shards import Shelf
from farm.storage import ObjectStore, require_create_once
from farm.tenants import Tenants

log = logging.getLogger(__name__)


def serve(settings: Settings) -> int:
    """Run until told to end. Raises Misconfigured, QueueForbidden among it, before the first round."""
    name_process(settings.worker_name)
    tracing.begin("inpaint-farm-dispatcher")
    client = connect(settings.redis_url)
    with suppress(QueueUnavailable):  # one that is away is waited for, round by round
        Window(client).models()
    store = settings.open_store()
    shelf = Shelf(store, settings.store)
    metrics.declare_queue(settings.model)
    health = Health(settings.metrics_host, settings.metrics_port, refresh=lambda: None)
    tenants = Tenants.load(settings, with_keys=False)
    weights = {tenant: policy.weight for tenant, policy in (tenants.policies or {}).items()}
    hints = Hints(make_app(settings))
    dispatcher = Dispatcher(client, hints, shelf, settings, weights=weights)
    gauges = Gauges(
        dispatcher.lead, Window(client), Batches(client), (settings.model,), growth_priority=settings.growth_priority
    )
    pods = Pods.here()
    costs = pods and DeletionCost(pods, settings.worker_name, Window(client), Batches(client), dispatcher.lead)
    marking = costs and Aside("idle workers are marked", costs.mark)
    webhooks = Webhooks(shelf, tenants, settings, lead=dispatcher.lead.held)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    health.start()
    _await_store(store, settings.store, stop)
    log.info("dispatching; metrics on port %d", health.port)

    def after_round() -> None:
        health.ready = True
        gauges.refresh()
        if costs and marking and costs.due():
            marking.start()

    if tenants.have_webhooks:
        webhooks.start()
    dispatcher.run(stop, on_round=after_round)
    webhooks.stop()
    health.stop()
    return 0


def _await_store(store: ObjectStore, root: str, stop: threading.Event) -> None:
    """Wait until the store answers, and make sure that it honours create-once: here for the whole farm, since only a
    dispatcher may delete what it tries that with. Raises Misconfigured if it does not."""
    while not stop.is_set():
        try:
            require_create_once(store, root)
            return
        except StoreUnavailable as error:
            log.warning("%s: %s", error.code, error)
            stop.wait(2.0)
