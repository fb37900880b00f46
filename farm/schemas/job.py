"""What a producer asks for: `InpaintJob`, and what it names beside pictures."""

from __future__ import annotations

from datetime import datetime
from hashlib import sha256
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from farm.errors import InvalidParameter, InvalidPrompt, SpecTooLarge
from farm.names import check_name, check_uri
from farm.schemas.message import SCHEMA_VERSION, Message, Sha256, WebhookUrl

MAX_SPEC_BYTES = 64 * 1024
MAX_PROMPT_BYTES = 8 * 1024

SchedulerName = Literal[
    "model", "ddim", "ddpm", "pndm", "lms", "euler", "euler_ancestral", "heun", "dpmpp_2m", "dpmpp_2m_karras",
    "dpmpp_2m_sde", "dpmpp_2m_sde_karras", "dpmpp_2s", "dpmpp_sde", "kdpm2", "kdpm2_ancestral", "deis", "unipc", "lcm",
]  # fmt: skip
OutputFormat = Literal["png", "jpeg", "webp", "avif", "tiff"]


def _check_prompt(field: str, text: str) -> str:
    size = len(text.encode())
    if size > MAX_PROMPT_BYTES:
        raise InvalidPrompt(f"{field}: {size} bytes; at most {MAX_PROMPT_BYTES}.")
    if "\x00" in text:
        raise InvalidPrompt(f"{field}: holds a NUL character; remove it.")
    return text


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
    # What another job may have written under the outputs' names: then this one fails; or, where all are there, succeeds
    # without outputs of its own. With "version" the job's id is in the names, so that nobody else has them.
    if_exists: Literal["fail", "skip", "version"] = "fail"

    priority: int = Field(default=50, ge=0, le=100)
    deadline: datetime | None = None
    webhook_url: WebhookUrl | None = None
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


def spec_line(job: InpaintJob) -> bytes:
    """A job as its shard keeps it: one NDJSON line of what is not a default.

    A field that a later release adds does not change the lines of jobs that do not use it, so an idempotency key
    stays good across an upgrade; what a default *means* belongs to the schema's version.
    """
    content = job.model_dump_json(exclude_defaults=True).encode()
    return b'{"schema_version":%d,' % job.schema_version + content[1:] + b"\n"
