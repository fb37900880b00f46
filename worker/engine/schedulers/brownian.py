"""Brownian motion as a function of time: ask for any interval, in any order, and get one and the same path.

The path is a virtual tree (Li et al., "Scalable Gradients for Stochastic Differential Equations", arXiv:2001.01328)
from torchsde, a function of its seed alone; so a run that is resumed elsewhere goes on along its own path.
"""

import torch

from worker.engine.errors import FeatureUnavailable, InvalidParameter

MAX_SEED = 2**63 - 1
DIGITS = 6


def draw_seed() -> int:
    """A seed from torch's global generator, drawn as diffusers draws one when none was given."""
    return int(torch.randint(0, MAX_SEED, []).item())


def brownian_noise(
    like: torch.Tensor, low: float, high: float, start: torch.Tensor, end: torch.Tensor, seeds: tuple[int, ...]
) -> torch.Tensor:
    """The path's increment from time `start` to `end` within `low`..`high`, scaled to unit variance.

    Shape and dtype of `like`; drawn on the CPU, so that a seed means one picture on every device. One seed draws the
    batch as a whole, several draw each row on its own.
    Raises FeatureUnavailable without torchsde, InvalidParameter for a number of seeds that is not the batch's.
    """
    try:
        from torchsde import BrownianInterval
    except ImportError as error:
        raise FeatureUnavailable("DPMSolverSDE needs torchsde, which is not installed: pip install torchsde") from error
    if len(seeds) not in (1, len(like)):
        raise InvalidParameter("seed", f"has {len(seeds)} entries for {len(like)} images: give one, or one each")
    shape = like.shape if len(seeds) == 1 else like.shape[1:]
    # torchsde rounds its ends to the tolerance; without this it would warn of each query that touches one.
    edges = round(low, DIGITS), round(high, DIGITS)
    first, last = (min(max(float(time), edges[0]), edges[1]) for time in sorted((start, end)))
    rows = []
    for seed in seeds:
        # tolerance and pool are diffusers': they decide at which points the tree is split, and so its numbers.
        path = BrownianInterval(
            t0=torch.tensor(low),
            t1=torch.tensor(high),
            size=tuple(shape),
            dtype=like.dtype,
            device="cpu",
            entropy=seed,
            tol=10.0**-DIGITS,
            pool_size=24,
            halfway_tree=True,
        )
        rows.append(path(first, last))
    increment = rows[0] if len(seeds) == 1 else torch.stack(rows)
    increment = increment if start < end else -increment
    return (increment / (end - start).abs().sqrt()).to(like.device)
