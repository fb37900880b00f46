"""What the farm answers to a job: `JobResult`, with all that is needed to make its pictures again."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from farm.schemas.job import LoraRef
from farm.schemas.message import SCHEMA_VERSION, Message, Sha256
from farm.states import JobState


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
