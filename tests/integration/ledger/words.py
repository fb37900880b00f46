"""What the tests of the index say again and again, in few words."""

from farm import keys
from farm.ledger import JobRef

MODEL = "sd15-inpaint"


def ref(name="a", *, tenant="default", batch="batch", shard=keys.SINGLE, priority=50):
    return JobRef(name, tenant, batch, MODEL, shard, 0, 100, priority=priority)


def claim(ledger, name="a", lease=30.0, **fields):
    return ledger.claim([ref(name, **fields)], lease_seconds=lease)[0]


def beat(ledger, owner, name="a", lease=30.0, **fields):
    return ledger.beat([ref(name, **fields)], owner, lease_seconds=lease)[0]


def take(window, count=10, quantum=100, look=30.0):
    refs = window.take_ready(MODEL, window=count, limit=count, quantum=quantum, look_again_in=look)
    return [one.job_id for one in refs]


def due(window):
    return window.take_due(limit=100, look_again_in=30)
