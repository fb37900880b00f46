"""Where a run puts its noise levels between the largest σ and the smallest, and which timestep a σ belongs to.

One signature for all placements: ``(high, low, steps) -> [steps]`` float64, falling from `high` to `low`.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from worker.engine.errors import FeatureUnavailable, InvalidParameter
from worker.engine.schedulers.timesteps import as_numbers

Placement = Callable[[float, float, int], np.ndarray]


def karras(high: float, low: float, steps: int, rho: float = 7.0) -> np.ndarray:
    """Even in σ^(1/ρ) (Karras et al., arXiv:2206.00364, eq. 5)."""
    ramp = np.linspace(0, 1, steps)
    first, last = high ** (1 / rho), low ** (1 / rho)
    return (first + ramp * (last - first)) ** rho


def exponential(high: float, low: float, steps: int) -> np.ndarray:
    """Even in log σ."""
    return np.exp(np.linspace(math.log(high), math.log(low), steps))


def beta(high: float, low: float, steps: int, alpha: float = 0.6, beta: float = 0.6) -> np.ndarray:
    """Quantiles of a Beta distribution, dense at both ends (Lee et al., "Beta Sampling is All You Need",
    arXiv:2407.12173). Raises FeatureUnavailable without scipy.
    """
    try:
        from scipy.stats import beta as distribution
    except ImportError as error:
        raise FeatureUnavailable("use_beta_sigmas needs scipy, which is not installed: pip install scipy") from error
    return low + distribution.ppf(1 - np.linspace(0, 1, steps), alpha, beta) * (high - low)


def lu(high: float, low: float, steps: int) -> np.ndarray:
    """Even in the log-SNR, −2·log σ, as DPM-Solver proposes (Lu et al., arXiv:2206.00927)."""
    first, last = float(np.log(np.float32(high))), float(np.log(np.float32(low)))
    return np.exp(first + np.linspace(0, 1, steps) * (last - first))


# By the config key that chooses them; at most one is set.
PLACEMENTS: Mapping[str, Placement] = {
    "use_karras_sigmas": karras,
    "use_lu_lambdas": lu,
    "use_exponential_sigmas": exponential,
    "use_beta_sigmas": beta,
}


def sigma_to_timestep(sigmas: np.ndarray, log_training: np.ndarray, precision: type = np.float64) -> np.ndarray:
    """The fractional timestep of each σ, interpolated in log σ between the training timesteps and clamped to them.

    `precision` is that of the interpolation: a rounding step of float32 at timestep 999 is 6e-5.
    """
    logs = np.log(np.maximum(sigmas, 1e-10))
    below = np.searchsorted(log_training, logs, side="right") - 1
    below = below.clip(0, len(log_training) - 2)
    low, high = log_training[below], log_training[below + 1]
    share = np.clip((low - logs) / (low - high), 0, 1)
    return (1 - share) * below.astype(precision) + share * (below + 1).astype(precision)


def custom_sigmas(sigmas: Sequence[float]) -> np.ndarray:
    """A caller's own noise levels, float32, the last being the level the run ends at.

    Raises InvalidParameter unless they are at least two and fall.
    """
    values = as_numbers("sigmas", sigmas).astype(np.float32)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or values[-1] < 0:
        raise InvalidParameter("sigmas", "must be a list of at least two numbers, none below 0")
    if (np.diff(values) >= 0).any():
        raise InvalidParameter("sigmas", "must be in descending order, the last being where the run ends (usually 0)")
    return values
