"""The index: which job is queued, who runs it, and when somebody must look at it next.

The object store is the truth and this can be thrown away; it only makes finding the next job quick and keeps two
workers from doing the same one. Redis holds, all under names of `farm.keys`:

    job:<id>        a small hash: where the spec lies, state, owner, attempt, crashes; gone when the job has ended
    ready:<m>:<t>   jobs of a model and a tenant that may be hinted, by priority, then by age
    tenants:<m>     tenants with ready jobs, by how much of their fair share they have had
    hinted:<m>      jobs that were hinted and are not claimed yet: the window
    due             when somebody must look: lease ends, retries, hints that came to nothing, batches
    batch:<id>      a batch: shards, how far they are indexed, how its jobs ended; paused or canceled

Every change is one Lua script, so it happens whole or not at all, and reads Redis' clock, so that no machine's own
clock matters. A job is held by a *lease*: the owner (a random name, new at every claim) renews it while work goes on.
Whoever comes after the lease's end may take the job; the former owner's next beat is refused.

    records     what is asked and answered          scripts, batch_scripts   the Lua
    connection  a client that notices dead peers    jobs       `Ledger`: enqueue, claim, beat, release, finish
    window      `Window`: what the dispatcher takes batches    `Batches`: accepted work that is not all indexed yet
"""

from farm.ledger.batches import Batches
from farm.ledger.connection import connect
from farm.ledger.jobs import Ledger
from farm.ledger.records import BatchRecord, Beat, Claim, JobRef, Outcome
from farm.ledger.window import Window

__all__ = ["BatchRecord", "Batches", "Beat", "Claim", "JobRef", "Ledger", "Outcome", "Window", "connect"]
