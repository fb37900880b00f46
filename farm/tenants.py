"""Who may do what: each tenant's keys, share, quota, and the places that its jobs may name.

The file that FARM_TENANTS names is one JSON object, a member a tenant; every member of a tenant may be left out:

    {"acme": {"keys": [{"file": "/run/secrets/acme-2"}, {"env": "ACME_KEY"}],   the first signs, any verifies
              "weight": 2.0,                                                    of its fair share of the workers
              "max_queued": 1000000,                                            jobs; 0: no limit
              "images": ["s3://acme-photos/"],                                  prefixes, each ending in "/"
              "masks": ["s3://acme-masks/"],                                    left out: those of images
              "loras": ["s3://acme-models/loras/"], "embeddings": [], "ip_adapters": [],
              "outputs": ["s3://acme-catalogue/edited/"],
              "webhook_hosts": ["hooks.acme.example", "*.acme.example:8443"],   that the dispatcher may call
              "webhook_secrets": [{"file": "/run/secrets/acme-webhooks"}]}}     all sign; read by the dispatcher only

With such a file a tenant that is not in it gets nothing. Without one every tenant's jobs may name what lies in the
farm's own bucket (of a local store: in its folders), and nothing is signed.

In both cases the farm's own records are out of every job's reach: below FARM_STORE a job reads and writes, of all that
`farm.keys` names, only `outputs/<its tenant>/`. All this is decided on the text of a URI, which is the object's only
name (see `farm.storage.base`), before anything is asked of the store: a refusal cannot tell what exists.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretBytes,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from farm.config import Settings
from farm.errors import AccessDenied, InvalidName, Misconfigured, UrlNotAllowed
from farm.names import check_name, check_uri
from farm.schemas import InpaintJob
from farm.signing import MIN_KEY_BYTES, signed_line, split_line, verify
from farm.storage import RECORDS, shown
from farm.webhooks.address import Target, check_pattern, check_url


class KeySource(BaseModel):
    """Where a signing key is read from: a file (a newline at its end is no part of it) or a variable."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: Path | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.env is None):
            raise PydanticCustomError("key", 'a key is either {{"file": "/path"}} or {{"env": "NAME"}}')
        return self

    def read(self) -> SecretBytes:
        """The key. Raises Misconfigured when it is not there or shorter than 32 bytes."""
        where = f"The signing key in {self.file or self.env}"
        try:
            found = self.file.read_bytes() if self.file else os.environ[self.env or ""].encode()
        except (OSError, KeyError) as error:
            raise Misconfigured(f"{where} cannot be read ({type(error).__name__}); see FARM_TENANTS.") from None
        key = found.removesuffix(b"\n")
        if len(key) < MIN_KEY_BYTES:
            raise Misconfigured(f"{where} has {len(key)} bytes; make one of at least {MIN_KEY_BYTES} random bytes.")
        return SecretBytes(key)


class TenantPolicy(BaseModel):
    """One tenant's member of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    keys: tuple[KeySource, ...] = ()
    weight: float = Field(default=1.0, gt=0)
    max_queued: int = Field(default=0, ge=0)
    images: tuple[str, ...] = ()
    masks: tuple[str, ...] | None = None
    loras: tuple[str, ...] = ()
    embeddings: tuple[str, ...] = ()
    ip_adapters: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    webhook_hosts: tuple[str, ...] = ()
    webhook_secrets: tuple[KeySource, ...] = ()

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(check_pattern(pattern) for pattern in value)

    @field_validator("images", "masks", "loras", "embeddings", "ip_adapters", "outputs")
    @classmethod
    def _prefixes(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for prefix in value or ():
            if not prefix.endswith("/"):  # "s3://a/b" would let "s3://a/bc" in
                raise PydanticCustomError("prefix", 'a prefix ends in "/"')
            try:
                check_uri("prefix", prefix, prefix=True)
            except (InvalidName, UrlNotAllowed) as error:
                raise PydanticCustomError("prefix", "{reason}", {"reason": str(error)}) from None
        return value


class Tenants:
    """All tenants of a farm. Immutable; a changed file or key is read by the next process that starts."""

    def __init__(
        self, policies: Mapping[str, TenantPolicy] | None, *, store: str, local_roots: tuple[str, ...] = (),
        with_keys: bool = True, webhook_hosts: tuple[str, ...] = (), webhook_secret_file: Path | None = None,
        webhook_allow_http: bool = False,
    ):  # fmt: skip
        """`policies` None: every tenant, and the farm's own places. The others as in the settings."""
        self.policies = policies
        self._scheme = store.partition("://")[0]
        self._roots = tuple(_spellings(store))
        buckets = (f"{store.split('/')[0]}//{store.split('/')[2]}/",) if self._scheme == "s3" else self._roots
        own = (*buckets, *(spelled for root in local_roots for spelled in _spellings(root)))
        self._open = TenantPolicy.model_construct(
            images=own, loras=own, embeddings=own, ip_adapters=own, outputs=own, webhook_hosts=webhook_hosts,
            webhook_secrets=() if webhook_secret_file is None else (KeySource(file=webhook_secret_file),),
        )  # fmt: skip
        self._webhook_allow_http = webhook_allow_http
        sources = {name: policy.keys for name, policy in (policies or {}).items()} if with_keys else {}
        self._keys = {name: tuple(source.read() for source in keys) for name, keys in sources.items()}

    @classmethod
    def load(cls, settings: Settings, *, with_keys: bool = True) -> Self:
        """The tenants of the file `settings.tenants`. A process that neither signs nor verifies needs no keys.

        Raises Misconfigured when the file or a key cannot be used.
        """
        policies = None if settings.tenants is None else _read(settings.tenants)
        return cls(
            policies, store=settings.store, local_roots=settings.local_roots, with_keys=with_keys,
            webhook_hosts=settings.webhook_hosts, webhook_secret_file=settings.webhook_secret_file,
            webhook_allow_http=settings.webhook_allow_http,
        )  # fmt: skip

    def policy(self, tenant: str) -> TenantPolicy:
        """Raises AccessDenied for a tenant that this farm does not serve."""
        if self.policies is None:
            return self._open
        if tenant not in self.policies:
            raise AccessDenied(f"tenant: {shown(tenant)!r} is not served by this farm; ask who operates it.")
        return self.policies[tenant]

    def check_job(self, job: InpaintJob) -> None:
        """Raises AccessDenied if the job's tenant may not name a place the job names, UrlNotAllowed if nobody may."""
        policy = self.policy(job.tenant)
        for field, uri, prefixes in _places(job, policy):
            if not uri.startswith(f"{self._scheme}://"):
                raise UrlNotAllowed(f"{field}: {shown(uri)!r} lies in no store of this farm; it is {self._scheme}://….")
            if not self._allowed(uri, job.tenant, prefixes):
                raise AccessDenied(
                    f"{field}: {shown(uri)!r} is not among the places that tenant {job.tenant!r} may name here; "
                    "use one that is, or ask who operates the farm."
                )
        if job.webhook_url is not None:
            self.check_webhook(job.webhook_url, tenant=job.tenant)

    def check_webhook(self, url: str, *, tenant: str) -> Target:
        """Where `url` leads. Raises UrlNotAllowed if this tenant's webhooks may not go there, AccessDenied if it is
        none of this farm's."""
        return check_url(url, hosts=self.policy(tenant).webhook_hosts, allow_http=self._webhook_allow_http)

    def webhook_secrets(self, tenant: str) -> list[bytes]:
        """What signs this tenant's webhooks, read anew each time. Raises Misconfigured, AccessDenied."""
        return [source.read().get_secret_value() for source in self.policy(tenant).webhook_secrets]

    @property
    def have_webhooks(self) -> bool:
        """Whether anybody's webhooks may go anywhere."""
        policies = [self._open] if self.policies is None else self.policies.values()
        return any(policy.webhook_hosts for policy in policies)

    def _allowed(self, uri: str, tenant: str, prefixes: tuple[str, ...]) -> bool:
        for root in self._roots:
            area = uri.removeprefix(root).partition("/")[0] if uri.startswith(root) else ""
            if area in RECORDS:
                return uri.startswith(f"{root}outputs/{tenant}/")
        return uri.startswith(prefixes)

    def seal(self, line: bytes, *, tenant: str, batch_id: str) -> bytes:
        """A spec's line as it is stored: signed with the tenant's first key, as it is where there is none."""
        keys = self._keys.get(tenant)
        return signed_line(line, tenant=tenant, batch_id=batch_id, key=keys[0]) if keys else line

    def admit(self, line: bytes, *, tenant: str, batch_id: str) -> InpaintJob:
        """The job of a stored line, if it may be run as this tenant's: all that a worker must know before it fetches.

        Raises SignatureInvalid, what `InpaintJob.from_json` raises, and AccessDenied or UrlNotAllowed.
        """
        unsigned, signature = split_line(line)
        if keys := self._keys.get(tenant):
            verify(unsigned, signature, tenant=tenant, batch_id=batch_id, keys=keys)
        job = InpaintJob.from_json(unsigned)
        if job.tenant != tenant:
            raise AccessDenied(f"tenant: the job names another tenant than {tenant!r}, whose it was submitted as.")
        self.check_job(job)
        return job


def _places(job: InpaintJob, policy: TenantPolicy) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """(field, URI, the prefixes it may begin with) for all that the job names."""
    yield "image", job.image, policy.images
    if job.mask is not None:
        yield "mask", job.mask, policy.images if policy.masks is None else policy.masks
    for lora in job.loras:
        yield "loras.path", lora.path, policy.loras
    for embedding in job.embeddings:
        yield "embeddings.path", embedding.path, policy.embeddings
    if job.ip_adapter is not None:
        yield "ip_adapter.path", job.ip_adapter.path, policy.ip_adapters
        yield "ip_adapter.image", job.ip_adapter.image, policy.images
    if job.output is not None:
        yield "output", job.output, policy.outputs


def _spellings(root: str) -> Iterator[str]:
    """A store's or folder's URI with "/" at its end; of a local one also as its symbolic links resolve."""
    if root.startswith("s3://"):
        yield root.rstrip("/") + "/"
        return
    folder = Path(root.removeprefix("file://")).expanduser().absolute()
    for path in dict.fromkeys((folder, folder.resolve())):
        yield f"file://{path}".removesuffix("/") + "/"


_FILE: TypeAdapter[dict[str, TenantPolicy]] = TypeAdapter(dict[str, TenantPolicy])


def _read(path: Path) -> dict[str, TenantPolicy]:
    try:
        text = path.read_bytes()
        json.loads(text, object_pairs_hook=_unique)
        policies = _FILE.validate_json(text, strict=True)
        for name in policies:
            check_name("tenant", name)
    except OSError as error:
        raise Misconfigured(f"FARM_TENANTS: {path} cannot be read ({type(error).__name__}).") from None
    except ValidationError as error:  # its text would show what was given, which may be a key in the wrong place
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Misconfigured(f"FARM_TENANTS: {place or path}: {first['msg']}.") from None
    except InvalidName as error:
        raise Misconfigured(f"FARM_TENANTS: {error}") from None
    except (ValueError, RecursionError):
        raise Misconfigured(f"FARM_TENANTS: {path} is not JSON, or names a member twice.") from None
    return policies


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found
