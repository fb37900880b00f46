"""What every network here shares: a frozen configuration, a dtype and a device.

Also the strict meeting of a network with its weights: nothing missing, nothing left over, every shape right.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from worker.engine.config import Config, Field, read
from worker.engine.errors import CheckpointInvalid


class Model(nn.Module):
    """A network built from a configuration. A subclass sets `FIELDS` and builds its layers from `self.config`."""

    FIELDS: ClassVar[Mapping[str, Field]]
    config: Config

    def __init__(self, **config: Any):
        super().__init__()
        self.config = read(type(self).__name__, self.FIELDS, config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A network with freshly drawn weights. Raises `CheckpointInvalid` for what we do not run."""
        return cls(**config)

    @classmethod
    def from_weights(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], dtype: torch.dtype | None, where: str = ""
    ) -> Self:
        """A network in evaluation mode with `tensors` for its weights, in `dtype` (`None`: as stored).

        What needs no cast is not copied: tensors of a file stay mapped to it (privately: what is written to a weight
        never reaches the file), so that memory holds a checkpoint once. Replace the file, never write into it.

        Raises `CheckpointInvalid` naming the first five of the missing, extra or misshapen tensors and how many.
        """
        tensors = cls.current_names(tensors)
        with torch.device("meta"):  # no time and no memory for weights that are replaced at once
            model = cls(**config)
        check_tensors({name: t.shape for name, t in model.state_dict().items()}, tensors, where or cls.__name__)
        model.load_state_dict({name: tensor.to(dtype=dtype) for name, tensor in tensors.items()}, assign=True)
        return model.eval()

    @classmethod
    def current_names(cls, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The same tensors under today's names; a class whose layers were once called otherwise overrides it."""
        return tensors

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def check_tensors(expected: Mapping[str, Iterable[int]], given: Mapping[str, Tensor], where: str) -> None:
    """Raise `CheckpointInvalid` unless `given` has exactly the names and shapes of `expected`."""
    wanted = {name: tuple(shape) for name, shape in expected.items()}
    misshapen = [
        f"{name} is {list(given[name].shape)} and should be {list(shape)}"
        for name, shape in wanted.items()
        if name in given and tuple(given[name].shape) != shape
    ]
    report = [
        _count("missing", sorted(wanted.keys() - given.keys())),
        _count("unexpected", sorted(given.keys() - wanted.keys())),
        _count("misshapen", misshapen),
    ]
    if any(report):
        raise CheckpointInvalid(
            f"{where}: the weights do not fit the configuration: {'; '.join(filter(None, report))}. "
            "Check that config.json and the weights come from the same model."
        )


def _count(kind: str, found: list[str]) -> str:
    if not found:
        return ""
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"{len(found)} {kind} tensor{'s' if len(found) > 1 else ''} ({', '.join(found[:5])}{more})"


def each(model: nn.Module, kind: type[nn.Module], do: Callable[[Any], None]) -> None:
    """Call `do` on every layer of that kind."""
    for module in model.modules():
        if isinstance(module, kind):
            do(module)
