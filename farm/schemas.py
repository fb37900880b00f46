"""What crosses the wire: frozen, versioned, JSON in and out.

`InpaintJob` is what a producer asks for, `JobResult` what the farm answers, one JSON object each. Field names are
diffusers' first, then those of the hosted APIs. Unknown fields are refused by name; a value out of range is
`InvalidParameter` with the field's path. The same checks run in the client and again in the worker.
"""

from __future__ import annotations

from contextvars import ContextVar
from datetime import datetime
from difflib import get_close_matches
from hashlib import sha256
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic import ModelWrapValidatorHandler as Handler
from pydantic_core import PydanticCustomError

from farm.errors import (
    FarmError,
    InvalidParameter,
    InvalidPrompt,
    SpecTooLarge,
    UnknownField,
    UnsupportedSpecVersion,
)
from farm.names import check_name, check_uri
from farm.states import JobState
from farm.webhooks.address import parse

SCHEMA_VERSION: Final = 1
MAX_SPEC_BYTES = 64 * 1024
MAX_PROMPT_BYTES = 8 * 1024

SchedulerName = Literal[
    "model", "ddim", "ddpm", "pndm", "lms", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_karras",
    "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_2s", "dpmpp_sde", "kdpm2", "kdpm2_ancestral", "deis", "unipc", "lcm",
]  # fmt: skip
OutputFormat = Literal["png", "jpeg", "webp", "avif", "tiff"]

_inside: ContextVar[bool] = ContextVar("inside a message", default=False)


class Message(BaseModel):
    """A frozen message that raises the farm's own errors, with the path of the field that is wrong."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, str_max_length=256 * 1024)

    @model_validator(mode="wrap")
    @classmethod
    def _translate(cls, data: Any, handler: Handler[Self]) -> Self:
        if _inside.get():  # a message inside a message: the outermost one knows the whole path
            return handler(data)
        token = _inside.set(True)
        try:
            return handler(data)
        except ValidationError as error:
            raise _farm_error(error, cls) from None
        finally:
            _inside.reset(token)

    def to_json(self) -> bytes:
        """Compact UTF-8 JSON, keys in declaration order: equal messages are equal bytes."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:  # not JSON at all: no validator of ours has run
            raise _farm_error(error, cls) from None


def _farm_error(error: ValidationError, cls: type[BaseModel]) -> FarmError:
    first = error.errors(include_url=False, include_context=True)[0]
    path = ".".join(str(part) for part in first["loc"]) or cls.__name__
    kind, given = first["type"], first.get("input")
    if kind == "extra_forbidden":
        near = get_close_matches(str(first["loc"][-1]), cls.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it."
        return UnknownField(f"{path!r} is not a field of {cls.__name__}; {hint}")
    if path == "schema_version":
        return UnsupportedSpecVersion(f"schema_version {given!r} is not known here; this farm reads {SCHEMA_VERSION}.")
    if kind == "string_unicode":
        return InvalidPrompt(f"{path}: holds a lone surrogate; send valid Unicode.")
    if kind == "json_invalid":
        return InvalidParameter(cls.__name__, f"is not valid JSON: {first['msg']}")
    shown = "" if isinstance(given, (dict, list, tuple)) or kind == "missing" else f", not {given!r:.80}"
    return InvalidParameter(path, first["msg"][0].lower() + first["msg"][1:] + shown)


def _check_prompt(field: str, text: str) -> str:
    size = len(text.encode())
    if size > MAX_PROMPT_BYTES:
        raise InvalidPrompt(f"{field}: {size} bytes; at most {MAX_PROMPT_BYTES}.")
    if "\x00" in text:
        raise InvalidPrompt(f"{field}: holds a NUL character; remove it.")
    return text


def _check_webhook(url: str) -> str:
    parse(url)
    return url


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class LoraRef(Message):
    """A LoRA by address. `scale` multiplies its effect; `sha256`, if given, pins the file's bytes."""

    path: str
    scale: float = Field(default=1.0, ge=-10, le=10)
    sha256: Sha256 | None = None

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        return check_uri("loras.path", value)


class EmbeddingRef(Message):
    """A textual inversion by address; `token` is the word in the prompt that stands for it."""

    path: str
    token: str | None = Field(default=None, min_length=1, max_length=64)
    sha256: Sha256 | None = None

    @field_validator("path")
    @classmethod
    def _path(cls, value: str) -> str:
        return check_uri("embeddings.path", value)


class IpAdapterRef(Message):
    """An IP-Adapter by address, and the reference image that it follows."""

    path: str
    image: str
    scale: float = Field(default=0.6, ge=0, le=2)
    sha256: Sha256 | None = None

    @field_validator("path", "image")
    @classmethod
    def _path(cls, value: str) -> str:
        return check_uri("ip_adapter", value)


class InpaintJob(Message):
    """One edit: an image, a mask, what to paint there, and how."""

    schema_version: Literal[1] = SCHEMA_VERSION
    tenant: str = "default"
    custom_id: str = ""  # empty: named after the job's content when it is submitted
    model: str = "sd15-inpaint"

    image: str
    mask: str | None = None
    mask_polarity: Literal["white_edits", "black_edits", "transparent_edits"] = "white_edits"

    prompt: str = ""
    negative_prompt: str = ""
    loras: tuple[LoraRef, ...] = Field(default=(), max_length=16)
    embeddings: tuple[EmbeddingRef, ...] = Field(default=(), max_length=16)
    ip_adapter: IpAdapterRef | None = None

    strength: float = Field(default=1.0, ge=0, le=1)
    guidance_scale: float = Field(default=7.5, ge=0, le=100)
    num_inference_steps: int = Field(default=30, ge=1, le=1000)
    scheduler: SchedulerName = "ddim"
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    num_images_per_prompt: int = Field(default=1, ge=1, le=16)
    height: int | None = Field(default=None, ge=64, le=2048)
    width: int | None = Field(default=None, ge=64, le=2048)
    clip_skip: int | None = Field(default=None, ge=1, le=11)
    eta: float = Field(default=0.0, ge=0, le=1)

    padding_mask_crop: int | None = Field(default=32, ge=0, le=4096)
    grow_mask: int = Field(default=5, ge=0, le=256)
    mask_blur: int = Field(default=4, ge=0, le=256)
    fill_holes: bool = False  # what the mask encloses is edited, too
    preserve_unmasked: bool = True
    paste: Literal["inner", "grown"] = "inner"  # with "grown" what the mask grows over is pasted, too

    # How often a picture that the quality gate rejects is painted again with another seed; None: as often as the farm
    # says, and never for a job that names its seed.
    gate_retries: int | None = Field(default=None, ge=0, le=8)

    output: str | None = None  # a prefix ending in "/"; none: the farm's own
    output_format: OutputFormat = "png"
    output_quality: int = Field(default=95, ge=1, le=100)  # of JPEG, WebP and AVIF; WebP and AVIF at 100: no loss
    if_exists: Literal["fail", "skip", "version"] = "fail"

    priority: int = Field(default=50, ge=0, le=100)
    deadline: datetime | None = None
    webhook_url: str | None = None
    metadata: dict[str, str] = Field(default_factory=dict, max_length=64)

    @field_validator("tenant", "model")
    @classmethod
    def _name(cls, value: str, info: Any) -> str:
        return check_name(info.field_name, value)

    @field_validator("custom_id")
    @classmethod
    def _custom_id(cls, value: str) -> str:
        return check_name("custom_id", value) if value else value

    @field_validator("image", "mask")
    @classmethod
    def _uri(cls, value: str | None, info: Any) -> str | None:
        return value if value is None else check_uri(info.field_name, value)

    @field_validator("webhook_url")
    @classmethod
    def _webhook(cls, value: str | None) -> str | None:
        return value if value is None else _check_webhook(value)

    @field_validator("output")
    @classmethod
    def _output(cls, value: str | None) -> str | None:
        if value is not None and not value.endswith("/"):
            raise InvalidParameter("output", "is a prefix and must end in '/'")
        return value if value is None else check_uri("output", value, prefix=True)

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _prompt(cls, value: str, info: Any) -> str:
        return _check_prompt(info.field_name, value)

    @field_validator("height", "width")
    @classmethod
    def _side(cls, value: int | None) -> int | None:
        if value is not None and value % 8:
            raise PydanticCustomError("multiple_of", "must be divisible by 8")
        return value

    @field_validator("deadline")
    @classmethod
    def _deadline(cls, value: datetime | None) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise PydanticCustomError("timezone", "must carry a time zone, e.g. 2030-01-31T12:00:00Z")
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        if (self.height is None) != (self.width is None):
            raise InvalidParameter("height", "and width are given together or not at all")
        if self.if_exists != "fail":
            raise InvalidParameter("if_exists", f"{self.if_exists!r} is not served by this version; leave it out")
        return self

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        if len(data) > MAX_SPEC_BYTES:
            raise SpecTooLarge(f"A job is at most {MAX_SPEC_BYTES} bytes of JSON, this one has {len(data)}.")
        return super().from_json(data)

    def content_name(self) -> str:
        """A custom_id for a job without one: 16 hex digits of its content's hash."""
        content = self.model_dump_json(exclude={"custom_id"})
        return sha256(content.encode()).hexdigest()[:16]


class ErrorInfo(Message):
    """Why a job did not succeed: a stable code, and a sentence a person can act on."""

    code: str
    message: str


class Scores(Message):
    """What the gate measured of a picture: 0 is flawless, more is worse; the formulas are in `worker.gate`.

    `worst` is the largest score as a share of its limit: above 1 the picture is rejected.
    """

    blank: float = Field(ge=0)
    unchanged: float = Field(ge=0)
    seam: float = Field(ge=0)
    colour_shift: float = Field(ge=0)
    worst: float = Field(ge=0)


class Output(Message):
    """One picture that was written. `seed` makes it again; `scores` are the gate's, None where it did not look."""

    uri: str
    sha256: Sha256
    bytes: int
    width: int
    height: int
    seed: int
    scores: Scores | None = None


class Receipt(Message):
    """The promise, measured: read back from the object that was written and compared with the source image.

    `max_abs_diff_outside` is the largest difference of any channel, alpha included, outside the mask (the worst of all
    outputs), over `pixels_outside` pixels. It is counted in steps of a channel of `bits` bits (0–255, or 0–65535 for a
    file of 16 bits), in the colours that the file has: `mode` is L, LA, RGB, RGBA or CMYK. A source that the format
    cannot hold as it is (a warning says so) is compared as converted to that. `outside` says which mask: the one that
    was submitted, or with `paste: grown` the one that was pasted.
    """

    max_abs_diff_outside: int
    pixels_outside: int
    mode: str = "RGB"
    bits: int = 8
    outside: Literal["submitted", "grown"] = "submitted"


class Hashes(Message):
    """sha256 of everything that went in."""

    image: Sha256 | None = None
    mask: Sha256 | None = None
    checkpoint: Sha256 | None = None
    loras: dict[str, Sha256] = Field(default_factory=dict)


class JobResult(Message):
    """The one answer to a job, written create-once when it reaches a terminal state."""

    schema_version: Literal[1] = SCHEMA_VERSION
    job_id: str
    tenant: str
    batch_id: str
    custom_id: str
    generation: int = 0
    status: JobState
    model: str
    image: str
    mask: str | None = None
    prompt: str = ""
    loras: tuple[LoraRef, ...] = ()
    outputs: tuple[Output, ...] = ()
    error: ErrorInfo | None = None
    warnings: tuple[str, ...] = ()
    receipt: Receipt | None = None
    needs_review: bool = False  # the gate rejected one of the outputs, also with other seeds
    rerenders: int = Field(default=0, ge=0)  # how often rejected pictures were painted again with another seed
    seed: int | None = None
    attempt: int = 0
    timings: dict[str, float] = Field(default_factory=dict)  # stage → seconds
    gpu_seconds: float = 0.0  # of the device, for all of the job's pictures: what it costs
    lora_swap_seconds: float = 0.0
    lora_mode: str = ""  # merged into the weights, mixed beside them, or merged+mixed; "" without LoRAs
    hashes: Hashes = Hashes()
    version: str = ""  # of this package
    device: str = ""
    worker: str = ""
    finished_at: datetime
    metadata: dict[str, str] = Field(default_factory=dict)


class BatchFooter(Message):
    """What seals a batch: so many jobs in so many shards, all of them written. `model`, `priority`: its first job's."""

    schema_version: Literal[1] = SCHEMA_VERSION
    tenant: str
    batch_id: str
    jobs: int = Field(ge=0)
    shards: int = Field(ge=0)
    model: str = "sd15-inpaint"
    priority: int = Field(default=50, ge=0, le=100)
    webhook_url: str | None = None  # called when all its jobs have ended

    @field_validator("webhook_url")
    @classmethod
    def _webhook(cls, value: str | None) -> str | None:
        return value if value is None else _check_webhook(value)


class BatchSummary(Message):
    """A batch in numbers. `counts` has the jobs of every state that any is in; what is not indexed yet is queued."""

    batch_id: str
    tenant: str
    jobs: int
    counts: dict[JobState, int]
    paused: bool = False
    canceled: bool = False
    retries: int = 0  # how often jobs of it were given another generation
    finished_at: datetime | None = None  # when its last job was counted; None while any is left
    # Once it is over its results are rolled into shards, in the order of its jobs: <results><shard, 5 digits>.ndjson,
    # a line a job. One that is not there yet, or is empty: those of its jobs lie by themselves.
    results: str | None = None

    @property
    def ended(self) -> int:
        return sum(count for state, count in self.counts.items() if state.terminal)

    @property
    def done(self) -> bool:
        return self.ended >= self.jobs


def spec_line(job: InpaintJob) -> bytes:
    """A job as its shard keeps it: one NDJSON line of what is not a default.

    A field that a later release adds does not change the lines of jobs that do not use it, so an idempotency key
    stays good across an upgrade; what a default *means* belongs to the schema's version.
    """
    content = job.model_dump_json(exclude_defaults=True).encode()
    return b'{"schema_version":%d,' % job.schema_version + content[1:] + b"\n"


def dump_line(message: Message) -> bytes:
    """One NDJSON line."""
    return message.to_json() + b"\n"
