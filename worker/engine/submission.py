"""What the engine is asked to paint, what is in its hands, and what comes of it."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from PIL import Image

from worker.engine.conditions import ImageKeysValues, KeysValues, TimeStates
from worker.engine.lora import Adapter
from worker.engine.prepare import Reading
from worker.engine.request import Request
from worker.engine.schedulers import Scheduler


@dataclass(frozen=True, eq=False)
class Word:
    """A textual inversion for one call: `tensors` as `read_embedding` gives them, under the name `token`."""

    token: str
    tensors: Any
    sha256: str


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """An IP-Adapter for one call: its two groups of tensors, the reference picture, and how much it counts."""

    groups: Mapping[str, Any]
    picture: Image.Image
    scale: float
    sha256: str
    """Of the adapter's file."""

    @property
    def key(self) -> tuple[str, float]:
        """Calls of one key can be in the UNet together."""
        return self.sha256, self.scale


def _nothing(ticket: "Ticket") -> None:
    return None


def _never(ticket: "Ticket") -> bool:
    return False


@dataclass(frozen=True, eq=False)
class Submission:
    """One call of the pipeline, to be made beside others.

    `arguments` are `StableDiffusionInpaintPipeline.prepare_request`'s, with a list of generators, one an image, so that
    no other call's draws come between. Instead of them, `resume` is a request that goes on where it was saved.
    """

    arguments: Mapping[str, Any]
    scheduler: Scheduler
    loras: tuple[Adapter, ...] = ()
    words: tuple[Word, ...] = ()
    image_prompt: ImagePrompt | None = None
    path_seeds: tuple[int, ...] = ()
    """One an image, for a scheduler with a random path of its own (DPMSolverSDE)."""
    resume: Request | None = None
    on_step: Callable[["Ticket"], None] = _nothing
    """Called on the engine's thread after each of its steps; what it raises ends this submission alone."""
    give_way: Callable[["Ticket"], bool] = _never
    """Asked on the engine's thread before the first step and after each: True hands the request back, see GaveWay."""


class GaveWay(Exception):
    """The future's exception where `give_way` said so. `request` is the state to resume from, None before a step."""

    def __init__(self, request: Request | None):
        super().__init__("the request gave way")
        self.request = request


@dataclass(frozen=True, eq=False)
class Painted:
    """`pictures` ``[N, 3, H, W]`` in −1..1 on the CPU, judged; `StableDiffusionInpaintPipeline.hand_out` makes of them
    what the call wanted. `lora_mode`: "", "merged", "mixed" or "merged+mixed".
    """

    request: Request
    pictures: torch.Tensor
    flags: list[bool] | None
    seconds: Mapping[str, float]
    lora_seconds: float
    lora_mode: str
    notes: tuple[str, ...]


class Footprint(NamedTuple):
    """What a call's LoRAs are to the UNet: the set's `name` ("" for none), the set, and what `choice` asks of it."""

    name: str = ""
    unet: tuple[Adapter, ...] = ()
    rank: int = 0
    share: float = 0.0
    mixable: bool = True


_serials = itertools.count()


@dataclass(eq=False)
class Ticket:
    """A submission in the engine's hands. Only the engine's thread writes to it."""

    submission: Submission
    reading: Reading | None = None
    """None for one that resumes."""
    future: Future[Painted] = field(default_factory=Future)
    request: Request | None = None
    loras: Footprint = field(default_factory=Footprint)
    seconds: dict[str, float] = field(default_factory=dict)
    """Device seconds by stage (vae_encode, denoise, vae_decode): of what it shared with others, its rows' share."""
    lora_seconds: float = 0.0
    """Spent writing its LoRAs into the weights, or laying them out for a mixed batch."""
    modes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    overtaken: int = 0
    """How often a later one was admitted first."""
    alone: bool = False
    """Memory did not hold it beside others: it waits until it has the device to itself."""
    texts: KeysValues | None = None
    """What its texts come to in the UNet under its LoRAs, a row for each of its rows."""
    images: Sequence[ImageKeysValues] = ()
    """The same of the pictures it looks at, for each IP-Adapter."""
    times: TimeStates | None = None
    """The same of its times, a row for each evaluation."""
    serial: int = field(default_factory=_serials.__next__)
    """No other has it, ever."""
    draws: tuple[torch.Tensor, ...] = ()
    """Its generators' states before the first draw, for another beginning."""

    def __post_init__(self) -> None:
        self.draws = tuple(one.get_state() for one in self._generators)

    @property
    def _generators(self) -> list[torch.Generator]:
        return self.submission.arguments.get("generator") or []

    def rewind(self) -> None:
        """Have the generators draw from the start again."""
        for generator, state in zip(self._generators, self.draws, strict=True):
            generator.set_state(state)

    @property
    def rows(self) -> int:
        """Of a step through the UNet; known once it is read."""
        if self.request is not None:
            return len(self.request.latents) * (2 if self.request.guided else 1)
        return 1 if self.reading is None else self.reading.rows

    def size(self, scale: int) -> tuple[int, int]:
        """Width and height of its pictures in px, `scale` to a cell of the latent grid."""
        if self.request is not None:
            height, width = self.request.latents.shape[-2:]
            return width * scale, height * scale
        return self.reading.call.width, self.reading.call.height

    @property
    def evaluations_left(self) -> int:
        """Of the model; before it is begun, about."""
        if self.request is not None:
            return self.request.num_timesteps - self.request.step_index
        call = self.reading.call
        return max(1, int(call.num_inference_steps * call.strength)) * self.submission.scheduler.order

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def painted(self, pictures: torch.Tensor, flags: list[bool] | None) -> Painted:
        """What its future is given."""
        return Painted(
            request=self.request,
            pictures=pictures,
            flags=flags,
            seconds=dict(self.seconds),
            lora_seconds=self.lora_seconds,
            lora_mode="+".join(sorted(self.modes)),
            notes=tuple(self.notes),
        )
