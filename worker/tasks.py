"""The Celery task: a thin shell around the runner."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery

from farm import metrics
from farm.errors import FarmError, WorkerFatal
from farm.queue import RENDER, read_hint
from worker.runner import Runner

log = logging.getLogger(__name__)


def register(app: Celery, runner: Runner) -> None:
    """Make `app` run hints with `runner`."""

    @app.task(name=RENDER)
    def render(hint: Any) -> None:
        try:
            refs = read_hint(hint)
        except (KeyError, TypeError, ValueError, FarmError) as error:
            metrics.dropped_messages.inc()
            log.warning("dropped a malformed hint: %s", error)
            return
        try:
            runner.run(refs)
        except WorkerFatal:
            log.critical("the worker cannot go on", exc_info=True)
            os._exit(1)  # at once and unsettled: the job's lease ends and another worker takes it
        except FarmError as error:  # the store or Redis is away: the ledger will hint the jobs again
            log.warning("%s before the jobs were settled: %s", error.code, error)
        except BaseException:  # whatever escapes a task leaves a worker that answers and never consumes again
            log.exception("the jobs could not be settled; their leases will end")
