"""Which training timesteps a run visits: "leading", "linspace", "trailing" (Lin et al., arXiv:2305.08891, table 2)."""

from collections.abc import Sequence

import numpy as np

from worker.engine.errors import InvalidParameter

SPACINGS = ("linspace", "leading", "trailing")


def spaced_timesteps(spacing: str, steps: int, train: int, offset: int, dtype: type = np.int64) -> np.ndarray:
    """``[steps]`` falling timesteps of 0..train−1 in `dtype`; whole numbers where `dtype` is an integer.

    Raises InvalidParameter when "leading" has no room for that many steps.
    """
    if spacing == "linspace":
        grid = np.linspace(0, train - 1, steps)[::-1]
        return (grid.round() if np.issubdtype(dtype, np.integer) else grid).astype(dtype)
    if spacing == "leading":
        return (np.arange(steps) * _stride(train, steps))[::-1].astype(dtype) + dtype(offset)
    return _trailing(train, train / steps, steps).astype(dtype) - dtype(1)


def solver_timesteps(spacing: str, steps: int, train: int, offset: int, last: int) -> np.ndarray:
    """``[steps]`` falling int64 timesteps as the log-SNR solvers space them: of `steps` + 1 grid points the cleanest is
    where the last step lands, so it is left out. `last` is below `train` where the noisy end is clipped.
    """
    if spacing == "linspace":
        return np.linspace(0, last - 1, steps + 1).round()[::-1][:-1].astype(np.int64)
    if spacing == "leading":
        return (np.arange(steps + 1) * _stride(last, steps + 1))[::-1][:-1].astype(np.int64) + offset
    return _trailing(last, train / steps, steps).astype(np.int64) - 1


def custom_timesteps(timesteps: Sequence[float], train: int, dtype: type) -> np.ndarray:
    """A caller's own timesteps as an array.

    Raises InvalidParameter when there are none, or one is no number of 0..train−1.
    """
    values = as_numbers("timesteps", timesteps)
    if values.ndim != 1 or not len(values) or not ((values >= 0) & (values < train)).all():
        raise InvalidParameter("timesteps", f"must be a list of numbers from 0 to {train - 1}, the training timesteps")
    return values.astype(dtype)


def as_numbers(field: str, values: Sequence[float]) -> np.ndarray:
    """float64; raises InvalidParameter naming `field` for what is no array of numbers."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidParameter(field, f"must be a list of numbers: {error}") from error


def require_falling(timesteps: np.ndarray) -> None:
    if (np.diff(timesteps) >= 0).any():
        raise InvalidParameter("timesteps", "must be in descending order")


def _stride(train: int, points: int) -> int:
    if points > train:
        raise InvalidParameter("num_inference_steps", f"is too large for 'leading' spacing over {train} timesteps")
    return train // points


def _trailing(last: int, stride: float, steps: int) -> np.ndarray:
    # Rounding makes arange end one entry too late for some counts (61 of 1,000 among them): that entry would be
    # timestep −1, which no model was trained on.
    return np.arange(last, 0, -stride).round()[:steps]
