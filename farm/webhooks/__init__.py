"""Webhooks: a signed POST to an address of the submitter's when a job or a batch has ended.

    address   which addresses may be called: their text, the allowlist, and what a name may resolve to
    message   what is sent, and its signature
    outbox    what is still to be sent: small objects in the store, deleted when it was
    post      one request, to one resolved address, within one time limit

The dispatcher sends (`farm.dispatcher.webhooks`). Each is sent at least once: receivers tell copies by `webhook-id`.
"""
