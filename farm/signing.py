"""Signed specs: who may put work into a tenant's name, when a bucket's policy alone is not trusted to say.

A spec is one JSON object a line. Its signature is that object's last member:

    {"schema_version":1, … ,"metadata":{}}                          unsigned
    {"schema_version":1, … ,"metadata":{},"signature":"<64 hex>"}   signed

It is HMAC-SHA256 (RFC 2104) with the tenant's key, over the object's bytes as they are stored without that member, and
over tenant and batch: a line that is copied into another tenant's or another batch's shard is not signed there.
Nothing is parsed before it is verified. The line's end is not covered, it only separates.

A tenant may have several keys: the first signs and any of them verifies, so that a key can be changed while work that
the old one signed is still queued.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from pydantic import SecretBytes

from farm.errors import SignatureInvalid

MIN_KEY_BYTES = 32  # RFC 2104, section 3: no shorter than the hash's output
SIGNATURE_BYTES = len(',"signature":""') + 64
"""How much longer signing makes a line."""

_DOMAIN = b"inpaint-farm spec v1"  # a key that also signs something else signs other bytes there
_MEMBER = re.compile(rb',"signature":"([0-9a-f]{64})"\}(\n?)\Z')


def sign(line: bytes, *, tenant: str, batch_id: str, key: SecretBytes) -> str:
    """The signature of an unsigned line, 64 hex digits. A newline at its end makes no difference."""
    message = b"\0".join((_DOMAIN, tenant.encode(), batch_id.encode(), line.removesuffix(b"\n")))
    return hmac.digest(key.get_secret_value(), message, "sha256").hex()


def verify(line: bytes, signature: str | None, *, tenant: str, batch_id: str, keys: Sequence[SecretBytes]) -> None:
    """Raises SignatureInvalid unless one of `keys` signed the (unsigned) line for this tenant and batch."""
    if signature is None:
        raise SignatureInvalid(f"The job is not signed; tenant {tenant!r} takes only jobs signed with its key.")
    expected = [sign(line, tenant=tenant, batch_id=batch_id, key=key) for key in keys]
    # All are compared, each in constant time: how long it takes says nothing about a key.
    if not sum(hmac.compare_digest(candidate, signature) for candidate in expected):
        raise SignatureInvalid(f"The job's signature is not tenant {tenant!r}'s for this batch; sign it with its key.")


def signed_line(line: bytes, *, tenant: str, batch_id: str, key: SecretBytes) -> bytes:
    """`line` (a JSON object with at least one member, with or without a newline) with its signature in it."""
    body = line.removesuffix(b"\n")
    if not (body.startswith(b"{") and body.endswith(b"}")) or body == b"{}":
        raise ValueError("only a JSON object with members can be signed")
    signature = sign(body, tenant=tenant, batch_id=batch_id, key=key)
    return b'%s,"signature":"%s"}%s' % (body[:-1], signature.encode(), line[len(body) :])


def split_line(line: bytes) -> tuple[bytes, str | None]:
    """(the line as it was before it was signed, its signature); of an unsigned line, that line and None."""
    found = _MEMBER.search(line)
    if found is None:
        return line, None
    return line[: found.start()] + b"}" + found[2], found[1].decode()
