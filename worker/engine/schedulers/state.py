"""A denoising run in flight, as a value: where it is in its schedule, and what its next step needs of earlier ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from worker.engine.errors import InvalidParameter


@dataclass(frozen=True, eq=False)
class SchedulerState:
    """Made by `Scheduler.start`, handed on by `Scheduler.step`; no step changes the state it was given.

    The tensors it keeps are those that were passed in (model outputs, samples): callers do not write into them.
    """

    scheduler: str
    """`_class_name` of the scheduler it belongs to."""
    timesteps: torch.Tensor
    """``[T]`` on the CPU: the whole schedule, from noise to image, inner evaluations of second-order steps included."""
    index: int
    """The entry of `timesteps` that the next step belongs to; T once the run is done."""
    begin_index: int
    """The entry at which the run began: above 0 where `strength` is below 1."""
    num_inference_steps: int
    """Steps of the whole schedule, before `strength` cut it."""
    device: torch.device
    """Where `Scheduler.timestep` puts its answer."""
    tables: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Noise levels by name, float32 on the CPU; ``sigmas`` has one entry more than `timesteps`."""
    history: tuple[torch.Tensor, ...] = ()
    """Earlier model outputs (as the scheduler converts them), oldest first."""
    held: tuple[torch.Tensor, ...] = ()
    """Further tensors, by position, that the scheduler's own file explains."""
    seed: tuple[int, ...] = ()
    """Seeds of a Brownian path (one for the whole batch, or one an image); empty where there is none."""

    @property
    def steps_done(self) -> int:
        """Model evaluations behind this state."""
        return self.index - self.begin_index

    @property
    def sigmas(self) -> torch.Tensor:
        return self.tables["sigmas"]

    @property
    def schedule(self) -> torch.Tensor:
        """``[n]``: the timesteps that this run walks, `strength` applied."""
        return self.timesteps[self.begin_index :]

    def advance(self, **changes: Any) -> "SchedulerState":
        """The state one model evaluation later."""
        return replace(self, index=self.index + 1, **changes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Every tensor by name, contiguous copies, fit for a safetensors file."""
        named = {"timesteps": self.timesteps}
        named |= {f"tables.{name}": table for name, table in self.tables.items()}
        named |= {f"history.{i}": tensor for i, tensor in enumerate(self.history)}
        named |= {f"held.{i}": tensor for i, tensor in enumerate(self.held)}
        return {name: tensor.detach().clone().contiguous() for name, tensor in named.items()}

    def scalars(self) -> dict[str, Any]:
        """Everything else, as JSON."""
        return {
            "scheduler": self.scheduler,
            "index": self.index,
            "begin_index": self.begin_index,
            "num_inference_steps": self.num_inference_steps,
            "seed": list(self.seed),
        }

    @classmethod
    def restore(
        cls, tensors: Mapping[str, torch.Tensor], scalars: Mapping[str, Any], device: torch.device | str = "cpu"
    ) -> "SchedulerState":
        """The state that `tensors` and `scalars` were taken from, bit for bit, its samples on `device`.

        Raises InvalidParameter where an entry is missing or left over.
        """
        unread = dict(tensors)
        expected = cls.__dataclass_fields__.keys() - {"timesteps", "tables", "device", "history", "held"}
        if scalars.keys() != expected or "timesteps" not in unread:
            raise InvalidParameter("scalars", f"must hold timesteps and exactly {sorted(expected)}: not a saved state")
        timesteps = unread.pop("timesteps").cpu()
        tables = {name: unread.pop(f"tables.{name}").cpu() for name in _names(unread, "tables.")}
        sequences = {
            kind: tuple(unread.pop(f"{kind}.{i}").to(device) for i in range(len(_names(unread, f"{kind}."))))
            for kind in ("history", "held")
            if _names(unread, f"{kind}.") == [str(i) for i in range(len(_names(unread, f"{kind}.")))]
        }
        if unread:
            raise InvalidParameter("tensors", f"holds {sorted(unread)[:5]}, which no saved state has")
        given = {**scalars, "seed": tuple(scalars["seed"])}
        return cls(timesteps=timesteps, tables=tables, device=torch.device(device), **given, **sequences)


def _names(tensors: Mapping[str, torch.Tensor], prefix: str) -> list[str]:
    return sorted((name.removeprefix(prefix) for name in tensors if name.startswith(prefix)), key=_position)


def _position(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (-1, name)
