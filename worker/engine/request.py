"""A picture in the making, as a value: everything its next step and its decoding need, and nothing outside it.

A `Request` is one call of the pipeline: N pictures that share prompt settings, schedule and guidance. No step changes
the one it was given; only its generators move on, as generators do. It can be written to bytes between two steps and
go on elsewhere, bit for bit on the same kind of device: `to_bytes` gives one safetensors blob with the rest as JSON in
its metadata, `from_bytes` reads it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save

from worker.engine.errors import InvalidParameter
from worker.engine.masks import Box
from worker.engine.noise import Generators
from worker.engine.schedulers import Scheduler, SchedulerState, from_config

FORMAT = "inpaint-farm-request/1"


@dataclass(frozen=True, eq=False)
class Overlay:
    """What `padding_mask_crop` needs at the end: where the crop lay, and the pictures it was taken from."""

    box: Box
    image: Image.Image
    """RGBA."""
    mask: Image.Image
    """L."""


@dataclass(frozen=True, eq=False)
class Request:
    """Shapes: N pictures, C latent channels, h × w the latent grid, H × W the picture, L tokens of D numbers."""

    scheduler: Scheduler
    state: SchedulerState
    latents: torch.Tensor
    """``[N, C, h, w]``: the sample as it stands, in the scheduler's own scaling."""
    prompt_embeds: torch.Tensor
    """``[N, L, D]``."""
    guidance_scale: float
    generator: Generators = None
    eta: float = 0.0
    lora_scale: float | None = None
    """What the call multiplies its LoRAs' strengths with."""
    negative_prompt_embeds: torch.Tensor | None = None
    """``[N, L, D]`` when a step makes the unconditional pass too, else None."""
    noise: torch.Tensor | None = None
    """``[N, C, h, w]``: the start noise, with which a 4-channel UNet's untouched region is noised at every step."""
    image_latents: torch.Tensor | None = None
    """``[N, C, h, w]`` for a 4-channel UNet, else None."""
    mask: torch.Tensor | None = None
    """``[N, 1, h, w]``, 1 where the picture changes."""
    masked_image_latents: torch.Tensor | None = None
    """``[N, C, h, w]``: the picture without the masked region, a 9-channel UNet's last four channels."""
    timestep_cond: torch.Tensor | None = None
    """``[N, time_cond_proj_dim]``: the guidance scale as an input, for distilled UNets."""
    ip_hidden_states: tuple[torch.Tensor, ...] = ()
    """One ``[N, pictures, tokens, D]`` an IP-Adapter, projected."""
    negative_ip_hidden_states: tuple[torch.Tensor, ...] = ()
    ip_adapter_masks: tuple[torch.Tensor, ...] = ()
    """One ``[1, pictures, H, W]`` an IP-Adapter: where each of its pictures has a say. Empty: everywhere."""
    pixels: torch.Tensor | None = None
    """``[N, 3, H, W]`` in −1..1, where the decoder is conditioned on the picture (AsymmetricAutoencoderKL)."""
    pixel_mask: torch.Tensor | None = None
    """``[N, 1, H, W]``, beside `pixels`."""
    overlay: Overlay | None = None
    output_type: str = "pil"

    @property
    def guided(self) -> bool:
        return self.negative_prompt_embeds is not None

    @property
    def done(self) -> bool:
        return self.scheduler.done(self.state)

    @property
    def step_index(self) -> int:
        """Model evaluations done."""
        return self.state.index - self.state.begin_index

    @property
    def num_timesteps(self) -> int:
        return len(self.state.schedule)

    def to_bytes(self) -> bytes:
        """One safetensors blob. A request without generators resumes with torch's own random numbers."""
        tensors = {f"field.{name}": getattr(self, name) for name in TENSORS if getattr(self, name) is not None}
        for name in SEQUENCES:
            tensors |= {f"{name}.{i}": tensor for i, tensor in enumerate(getattr(self, name))}
        tensors |= {f"state.{name}": tensor for name, tensor in self.state.tensors().items()}
        many = isinstance(self.generator, list)
        generators = self.generator if many else [self.generator] if self.generator is not None else []
        tensors |= {f"generator.{i}": one.get_state() for i, one in enumerate(generators)}
        scalars: dict[str, Any] = {
            "format": FORMAT,
            "scheduler": dict(self.scheduler.config),
            "state": self.state.scalars(),
            "generators": [one.device.type for one in generators],
            "generator_list": many,
            **{name: getattr(self, name) for name in SCALARS},
        }
        if self.overlay is not None:
            scalars["overlay"] = self.overlay.box
            tensors["overlay.image"] = torch.from_numpy(np.array(self.overlay.image))
            tensors["overlay.mask"] = torch.from_numpy(np.array(self.overlay.mask))
        # Clones: rows that share storage (a repeated mask) are separate tensors to safetensors.
        packed = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        return save(packed, metadata={"request": json.dumps(scalars)})

    @classmethod
    def from_bytes(cls, blob: bytes, device: torch.device | str = "cpu") -> "Request":
        """The request that `to_bytes` wrote, its tensors on `device`.

        Raises InvalidParameter when the bytes are no saved request, or one of another format.
        """
        tensors, scalars = _read(blob)
        device = torch.device(device)
        generators = [
            _generator(tensors[f"generator.{i}"], kind, device) for i, kind in enumerate(scalars["generators"])
        ]
        single = generators[0] if generators else None
        moved = {key: tensor.to(device) for key, tensor in tensors.items() if not key.startswith("generator.")}
        return cls(
            scheduler=from_config(scalars["scheduler"]),
            state=SchedulerState.restore(_under(tensors, "state."), scalars["state"], device),
            generator=generators if scalars["generator_list"] else single,
            overlay=_overlay(tensors, scalars.get("overlay")),
            **{name: moved.get(f"field.{name}") for name in TENSORS},
            **{name: tuple(_under(moved, f"{name}.").values()) for name in SEQUENCES},
            **{name: scalars[name] for name in SCALARS},
        )

    def on(self, device: torch.device | str) -> "Request":
        """A copy with its tensors on `device`; the generators stay where they are."""
        moved = {name: getattr(self, name).to(device) for name in TENSORS if getattr(self, name) is not None}
        moved |= {name: tuple(t.to(device) for t in getattr(self, name)) for name in SEQUENCES}
        state = SchedulerState.restore(self.state.tensors(), self.state.scalars(), device)
        return replace(self, state=state, **moved)


TENSORS = (
    "latents",
    "prompt_embeds",
    "negative_prompt_embeds",
    "noise",
    "image_latents",
    "mask",
    "masked_image_latents",
    "timestep_cond",
    "pixels",
    "pixel_mask",
)
SEQUENCES = ("ip_hidden_states", "negative_ip_hidden_states", "ip_adapter_masks")
SCALARS = ("guidance_scale", "eta", "lora_scale", "output_type")


def _read(blob: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors = load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        scalars = json.loads(header["__metadata__"]["request"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidParameter("blob", f"is no saved request: {error}") from error
    if scalars.get("format") != FORMAT:
        raise InvalidParameter("blob", f"is a saved request of format {scalars.get('format')!r}, not {FORMAT!r}")
    return tensors, scalars


def _under(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensors[key] for key in sorted(tensors, key=_numbered) if key.startswith(prefix)}


def _numbered(key: str) -> tuple[str, int, str]:
    stem, _, last = key.rpartition(".")
    return (stem, int(last), "") if last.isdecimal() else (stem, -1, last)


def _generator(state: torch.Tensor, kind: str, device: torch.device) -> torch.Generator:
    generator = torch.Generator("cpu" if kind == "cpu" else device)
    generator.set_state(state)
    return generator


def _overlay(tensors: Mapping[str, torch.Tensor], box: list[int] | None) -> Overlay | None:
    if box is None:
        return None
    image, mask = (Image.fromarray(tensors[f"overlay.{name}"].numpy()) for name in ("image", "mask"))
    return Overlay(tuple(box), image, mask)
