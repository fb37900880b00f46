"""One step of the exponential integrators behind DPM-Solver, as a table of weights.

Over a step of h in λ, from level `here` to level `there`, every variant is

    x_t = keep·x + whole·D₀ + slope·D₁ + bend·D₂ + noise·z

with D₀ the model's value (x₀ for the ++ variants, ε for the others) and D₁, D₂ its divided differences in λ, scaled by
h. The ODE variants are Lu et al., arXiv:2206.00927 (ε) and arXiv:2211.01095 (x₀, the "++"); the SDE variants are the
latter's. "midpoint" and "heun" differ in how they weigh D₁.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from worker.engine.schedulers.solver_space import Level

Weight = Callable[[Level, Level, torch.Tensor], torch.Tensor]


class Integrator(NamedTuple):
    """Weights of one variant, each from (here, there, h); `noise` is None for the ODE variants."""

    keep: Weight
    whole: Weight
    slope: Weight
    bend: Weight | None
    noise: Weight | None


INTEGRATORS: Mapping[str, Integrator] = {
    "dpmsolver": Integrator(
        keep=lambda here, there, h: there.alpha / here.alpha,
        whole=lambda here, there, h: -(there.sigma * (torch.exp(h) - 1.0)),
        slope=lambda here, there, h: -(there.sigma * ((torch.exp(h) - 1.0) / h - 1.0)),
        bend=lambda here, there, h: -(there.sigma * ((torch.exp(h) - 1.0 - h) / h**2 - 0.5)),
        noise=None,
    ),
    "dpmsolver++": Integrator(
        keep=lambda here, there, h: there.sigma / here.sigma,
        whole=lambda here, there, h: -(there.alpha * (torch.exp(-h) - 1.0)),
        slope=lambda here, there, h: there.alpha * ((torch.exp(-h) - 1.0) / h + 1.0),
        bend=lambda here, there, h: -(there.alpha * ((torch.exp(-h) - 1.0 + h) / h**2 - 0.5)),
        noise=None,
    ),
    "sde-dpmsolver": Integrator(
        keep=lambda here, there, h: there.alpha / here.alpha,
        whole=lambda here, there, h: -2.0 * (there.sigma * (torch.exp(h) - 1.0)),
        slope=lambda here, there, h: -2.0 * (there.sigma * ((torch.exp(h) - 1.0) / h - 1.0)),
        bend=None,
        noise=lambda here, there, h: there.sigma * torch.sqrt(torch.exp(2 * h) - 1.0),
    ),
    "sde-dpmsolver++": Integrator(
        keep=lambda here, there, h: there.sigma / here.sigma * torch.exp(-h),
        whole=lambda here, there, h: there.alpha * (1 - torch.exp(-2.0 * h)),
        slope=lambda here, there, h: there.alpha * ((1.0 - torch.exp(-2.0 * h)) / (-2.0 * h) + 1.0),
        bend=lambda here, there, h: there.alpha * ((1.0 - torch.exp(-2.0 * h) - 2.0 * h) / (2.0 * h) ** 2 - 0.5),
        noise=lambda here, there, h: there.sigma * torch.sqrt(1.0 - torch.exp(-2 * h)),
    ),
}


def integrate(
    variant: str,
    here: Level,
    there: Level,
    sample: torch.Tensor,
    terms: tuple[torch.Tensor, ...],
    *,
    midpoint: bool,
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """`sample` carried from `here` to `there`; `terms` are D₀ and, by order, D₁ and D₂. `midpoint` gives D₁ half of
    D₀'s weight in the place of its own.
    """
    weights, h = INTEGRATORS[variant], there.lam - here.lam
    carried = weights.keep(here, there, h) * sample + weights.whole(here, there, h) * terms[0]
    if len(terms) > 1:
        slope = 0.5 * weights.whole(here, there, h) if midpoint else weights.slope(here, there, h)
        carried = carried + slope * terms[1]
    if len(terms) > 2:
        carried = carried + weights.bend(here, there, h) * terms[2]
    if noise is not None:
        carried = carried + weights.noise(here, there, h) * noise
    return carried
