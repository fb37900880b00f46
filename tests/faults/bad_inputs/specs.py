"""Jobs that are wrong in themselves. What the client refuses is also put past it, straight into the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from farm.schemas import MAX_PROMPT_BYTES, MAX_SPEC_BYTES
from tests.faults.bad_inputs.bench import Bench, spec
from tests.faults.bad_inputs.row import Fields, Row


def job(**fields: Any) -> Callable[[Bench], Fields]:
    return lambda bench: fields


def raw(text: bytes) -> Callable[[Bench], bytes]:
    """A spec that our client could not even write."""
    return lambda bench: text


def around(before: bytes, after: bytes = b"") -> Callable[[Bench], bytes]:
    """A good job's spec with bytes put in before its first member and after its last."""
    return lambda bench: b"{" + before + spec(bench.fields())[1:-1] + after + b"}"


def _early(what: str, code: str, **fields: Any) -> Row:
    return Row(what, code, job(**fields), early=True)


_PARAMETER, _NAME, _PROMPT, _URL = "InvalidParameter", "InvalidName", "InvalidPrompt", "UrlNotAllowed"
_MANY = [{"path": "file:///a.safetensors"}] * 1000

SPECS: tuple[Row, ...] = (
    _early("prompt over 8 KB", _PROMPT, prompt="x" * (MAX_PROMPT_BYTES + 1)),
    _early("prompt over 8 KB as UTF-8, not as characters", _PROMPT, prompt="😀" * (MAX_PROMPT_BYTES // 4 + 1)),
    _early("NUL in the prompt", _PROMPT, prompt="a\0b"),
    Row("half a surrogate pair in the prompt, written as JSON", _PARAMETER, around(b'"prompt":"\\ud800",')),
    Row("prompt over 77 tokens: cut as diffusers does", "", job(prompt="table " * 60), bench="model",
        warning="prompt: "),
    Row("negative prompt over 77 tokens", "", job(negative_prompt="table " * 60), bench="model",
        warning="negative_prompt: "),
    Row("newlines and escape sequences in the prompt", "", job(prompt='a\n{"level":"critical"}\x1b[2J\u202e\r')),
    Row("control characters in the metadata", "", job(metadata={"shop": "\x1b]0;x\x07\n"})),
    *(
        _early(f"{field} {value}", _PARAMETER, **{field: value})
        for field, value in (
            ("num_inference_steps", 0), ("num_inference_steps", 10**9), ("guidance_scale", float("nan")),
            ("guidance_scale", float("inf")), ("guidance_scale", -1.0), ("strength", -1.0), ("strength", 1.01),
            ("strength", float("nan")), ("seed", 2**70), ("seed", -1), ("eta", 2.0), ("num_images_per_prompt", 0),
            ("num_images_per_prompt", 10**6), ("grow_mask", -1), ("mask_blur", 10**6), ("padding_mask_crop", -1),
            ("priority", 101), ("output_quality", 0), ("clip_skip", -1), ("scheduler", "magic"),
            ("output_format", "exe"), ("mask_polarity", "inside_out"), ("num_inference_steps", "thirty"),
            ("num_inference_steps", 1.5), ("preserve_unmasked", "perhaps"), ("image", 7),
        )
    ),
    _early("height 510, width 512", _PARAMETER, height=510, width=512),
    _early("height 10**6, width 10**6", _PARAMETER, height=10**6, width=10**6),
    _early("height without width", _PARAMETER, height=512),
    _early("a LoRA's scale NaN", _PARAMETER, loras=[{"path": "file:///a.safetensors", "scale": float("nan")}]),
    _early("a LoRA's hash that is none", _PARAMETER, loras=[{"path": "file:///a.safetensors", "sha256": "abc"}]),
    _early("1,000 LoRAs", _PARAMETER, loras=_MANY),
    _early("65 metadata", _PARAMETER, metadata={f"m{n}": "x" for n in range(65)}),
    _early("deadline without a time zone", _PARAMETER, deadline="2030-01-01T00:00:00"),
    _early("deadline that is no date", _PARAMETER, deadline="tomorrow"),
    _early("output that is no prefix", _PARAMETER, output="file:///out"),
    _early("a webhook to an address by its number", _URL, webhook_url="http://169.254.169.254/latest"),
    _early("a webhook to a host that nobody allowed", _URL, webhook_url="https://attacker.example/"),
    _early("unknown field", "UnknownField", strenght=0.5),
    _early("unknown field in a LoRA", "UnknownField", loras=[{"path": "file:///a.safetensors", "weight": 1}]),
    _early("an endpoint in a spec", "UnknownField", s3_endpoint="http://attacker.example"),
    _early("unknown version", "UnsupportedSpecVersion", schema_version=2),
    _early("spec over 64 KB", "SpecTooLarge", metadata={f"m{n}": "x" * 2000 for n in range(60)}),
    Row("spec over 64 KB of spaces", "SpecTooLarge", around(b" " * MAX_SPEC_BYTES)),
    Row("JSON 30,000 deep", _PARAMETER, around(b'"metadata":' + b"[" * 30_000 + b"]" * 30_000 + b",")),
    Row("an unknown field 100 deep", "UnknownField", around(b'"deep":' + b"[" * 100 + b"]" * 100 + b",")),
    Row("a spec that is not JSON", _PARAMETER, raw(b"hello")),
    Row("a spec that is a list", _PARAMETER, raw(b"[]")),
    Row("a spec of half an object", _PARAMETER, raw(b'{"image": "file:///a')),
    Row("a spec that is not UTF-8", _PARAMETER, around(b'"prompt":"\xff",')),
    Row("a pickle for a spec", _PARAMETER, raw(b"\x80\x04\x95\x0b\0\0\0\0\0\0\0}\x94\x8c\1a\x94K\1s.")),
    *(
        _early(f"{field}: {what}", _NAME, **{field: value})
        for field, what, value in (
            ("custom_id", "../../etc", "../../etc"), ("custom_id", "a/b", "a/b"), ("custom_id", "/a", "/a"),
            ("custom_id", "a..b", "a..b"), ("custom_id", "%2e%2e", "%2e%2e"), ("custom_id", "NUL", "a\0"),
            ("custom_id", "newline", "a\nb"), ("custom_id", "129 letters", "a" * 129), ("model", "a/b", "a/b"),
            ("image", "s3://photos/../a", "s3://photos/../a"), ("image", "file:///a/./b", "file:///a/./b"),
            ("image", "file:///a//b", "file:///a//b"), ("image", "s3://photos/%2e%2e/a", "s3://photos/%2e%2e/a"),
            ("image", "s3://photos/%252e%252e/a", "s3://photos/%252e%252e/a"), ("image", "NUL", "file:///a\0"),
            ("image", "newline", "file:///a\nb"), ("image", "no scheme", "a.png"),
            ("image", "/etc/passwd", "/etc/passwd"),
            ("image", "s3://..", "s3://.."), ("image", "s3://a..b/k", "s3://a..b/k"), ("image", "s3:///k", "s3:///k"),
            ("image", "credentials", "s3://key:secret@photos/a"), ("mask", "file:///../a", "file:///../a"),
            ("output", "file:///a/../b/", "file:///a/../b/"),
        )
    ),
    *(
        _early(f"{field}: {value}", _URL, **{field: value})
        for field, value in (
            ("image", "https://example.com/a.png"), ("image", "http://169.254.169.254/latest/meta-data"),
            ("image", "http://[fd00:ec2::254]/latest"), ("image", "s3://169.254.169.254/latest"),
            ("image", "s3://localhost:9000/bucket/a"), ("image", "s3://[::1]/a"), ("image", "file://host/a"),
            ("image", "ftp://h/a"), ("image", "data:image/png;base64,AA=="), ("image", "gopher://h:6379/_FLUSHALL"),
            ("mask", "http://127.0.0.1:9090/metrics"), ("output", "https://h/"),
        )
    ),
    _early("a LoRA on the web", _URL, loras=[{"path": "https://example.com/a.safetensors"}]),
    _early("a reference image on the web", _URL, ip_adapter={"path": "file:///ip.safetensors", "image": "http://h/a"}),
    Row("another model", "UnknownModel", job(model="sdxl")),
)  # fmt: skip
