"""The control plane: sees that every accepted job is indexed, hinted, and looked after until it has a result.

    dispatcher   the loop: what is due, what is to be indexed, what is to be hinted
    acceptance   batches between store and index: opened, indexed shard by shard, closed
    ended        which jobs of a batch have a result, by their names
    reconcile    the index made again from the store, after Redis lost it
    pace         how many hints may be out, and how many jobs one stands for
    rolling      the results of batches that are over, rolled into shards
    orphans      outputs that no result names, deleted
    aside        what takes minutes, beside the loop
    lead         which of several dispatchers does what only one need do
    deletion_cost  which workers Kubernetes should take last
    gauges       the queue's metrics, exported by one dispatcher of several
    webhooks     sends them, from notes in the store
    process      `farm dispatcher`: signals, health, the end

Any number may run: every change of the index is one script, and each job is handed to one of them only.
"""

from farm.dispatcher.dispatcher import Dispatcher

__all__ = ["Dispatcher"]
