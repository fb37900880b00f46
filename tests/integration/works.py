"""A client, a dispatcher and a painting worker that take turns, on a real Redis and a real store."""

import time
from itertools import count

from farm import keys
from farm.dispatcher import Dispatcher
from farm.errors import QueueUnavailable
from farm.ledger import Batches, connect
from farm.shards import Shelf
from tests.integration.test_runner import Bench


class Post:
    """Carries hints from the dispatcher to the worker, in this process; `lost` of them vanish on the way."""

    def __init__(self):
        self.hints, self.lost = [], False

    def publish(self, refs):
        if not self.lost:
            self.hints.append(list(refs))


class Works(Bench):
    """A client, a dispatcher and a worker that take turns."""

    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        self.post = Post()
        self.shelf = Shelf(self.store, self.root)
        self.batches = Batches(self.ledger._redis)
        self.dispatcher = self.another_dispatcher()
        self.names = count()

    def another_dispatcher(self):
        return Dispatcher(connect(self.settings.redis_url), self.post, self.shelf, self.settings)

    def jobs(self, number, **fields):
        return [self.job(custom_id=f"sku-{next(self.names)}", num_inference_steps=1, **fields) for _ in range(number)]

    def turn(self):
        """Rounds of the dispatcher, one to index and one to hint, and all that came of it; whether anything did."""
        for _ in range(2):
            self.dispatcher.round()
            self.dispatcher._recovering.join()
        hints, self.post.hints = self.post.hints, []
        for refs in hints:
            self.runner.run(refs)
        return bool(hints)

    def claims(self, monkeypatch):
        """A list, into which the id of every job goes that is claimed from now on."""
        claimed, claim = [], self.runner._ledger.claim

        def noted(refs, **options):
            claimed.extend(ref.job_id for ref in refs)
            return claim(refs, **options)

        monkeypatch.setattr(self.runner._ledger, "claim", noted)
        return claimed

    def work_off(self, batch, turns=300):
        for _ in range(turns):
            self.turn()
            try:
                if batch.status().done and self.batches.record(batch.tenant, batch.id) is None:
                    return batch.status()
            except QueueUnavailable:  # the index is being made again
                time.sleep(0.02)
        raise AssertionError(f"not done: {batch.status()}")

    def look_now(self):
        """Make everything that is due some day due now."""
        redis = self.ledger._redis
        for name in redis.zrange(keys.DUE, 0, -1):
            redis.zadd(keys.DUE, {name: 0})
