"""Objects that are not there, not the tenant's, or not what they were. All on S3, with a file of tenants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import SecretBytes

from farm.signing import signed_line
from tests.faults.bad_inputs.bench import TENANT, Bench, spec
from tests.faults.bad_inputs.row import Fields, Line, Row

KEY = b"acme's key, of 32 bytes or more!!"


def at(place: str, name: str, field: str = "image") -> Callable[[Bench], Fields]:
    """A job whose `field` names an object in one of the bench's places."""
    return lambda bench: _naming(field, f"{bench.places[place]}{name}")


def _naming(field: str, uri: str) -> Fields:
    nested: dict[str, Any] = {"loras": [{"path": uri}], "embeddings": [{"path": uri}]}
    return {field: nested.get(field, uri)}


def _row(what: str, code: str, make: Callable[[Bench], Fields | bytes], early: bool = False) -> Row:
    return Row(what, code, make, early=early, bench="buckets")


def _own(field: str, area: str) -> Callable[[Bench], Fields]:
    """The farm's own records."""
    return lambda bench: _naming(field, f"{bench.settings.store}/{area}{'' if field == 'output' else 'x.safetensors'}")


def _signed(**changes: Any) -> Callable[[Bench], bytes]:
    """A good job's line, signed by or for somebody else."""

    def make(bench: Bench) -> bytes:
        options = {"tenant": TENANT, "batch_id": "b", "key": KEY, **changes}
        return Line(signed_line(spec(bench.fields()), **{**options, "key": SecretBytes(options["key"])}))

    return make


_DENIED, _FORGED = "AccessDenied", "SignatureInvalid"

PLACES: tuple[Row, ...] = (
    _row("no such image", "InputNotFound", at("inputs", "none.png")),
    _row("no such mask", "InputNotFound", at("inputs", "none.png", "mask")),
    _row("no such LoRA", "LoraNotFound", at("inputs", "none.safetensors", "loras")),
    _row("no such bucket", "InputNotFound", at("nowhere", "a.png")),
    _row("S3 says 403", "InputForbidden", at("closed", "a.png")),
    _row("S3 says 403 to what is not there either", "InputForbidden", at("closed", "none.png")),
    _row("a LoRA that changed while the job looked at it", "InputChanged", at("changing", "a.safetensors", "loras")),
    _row("a body that goes on after the byte cap, without a length", "ObjectTooLarge", at("endless", "a.png")),
    *(
        _row(f"another tenant's {what}", _DENIED, at("rival", name, field), early=True)
        for what, field, name in (
            ("image", "image", "photo.png"), ("mask", "mask", "photo.png"), ("LoRA", "loras", "a.safetensors"),
            ("embedding", "embeddings", "a.safetensors"), ("output", "output", ""),
        )
    ),
    _row("another tenant's image that is not there: the same words", _DENIED, at("rival", "none.png"), early=True),
    _row("another bucket", _DENIED, at("foreign", "a.png"), early=True),
    _row("a prefix that only begins like the tenant's", _DENIED, at("sibling", "a.png"), early=True),
    *(
        _row(f"the farm's own {area} as {field}", _DENIED, _own(field, area), early=True)
        for area, field in (
            ("specs/acme/b/", "image"), ("results/acme/b/", "mask"), ("outputs/rival/b/", "image"),
            ("states/acme/b/", "loras"), ("results/acme/b/", "output"), ("specs/acme/b/", "output"),
            ("outputs/rival/b/", "output"),
        )
    ),
    _row("another kind of store", "UrlNotAllowed", lambda bench: {"image": "file:///etc/passwd"}, early=True),
    _row("a tenant that this farm does not serve", _DENIED, lambda bench: {"tenant": "nobody"}, early=True),
    _row("a spec of one tenant in another's folder", _DENIED, lambda bench: spec(bench.fields(tenant="rival"))),
    _row("an unsigned spec where the tenant has a key", _FORGED, lambda bench: Line(spec(bench.fields()))),
    _row("a spec signed with another key", _FORGED, _signed(key=b"?" * 32)),
    _row("a spec signed for another batch", _FORGED, _signed(batch_id="other")),
    _row("a spec signed for another tenant", _FORGED, _signed(tenant="rival")),
    _row("a signature of rubbish", _FORGED, lambda bench: Line(spec(bench.fields())[:-1] + b',"signature":"rubbish"}')),
    _row("an output that is there already", "OutputExists",
         lambda bench: {"output": bench.places["outputs"], "custom_id": bench.places["taken"]}),
)  # fmt: skip
