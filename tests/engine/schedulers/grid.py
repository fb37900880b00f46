"""The configurations that are compared with diffusers: for each class, every value of every key that moves a number.

`VARIANTS` changes one thing at a time (two where one has no meaning alone) from a Stable Diffusion 1.5 base.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

from worker.engine.schedulers import SCHEDULERS

BASE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RUNS = [(steps, strength) for steps in (1, 2, 5, 10, 23) for strength in (0.3, 0.6, 1.0) if int(steps * strength)]
NAMES = sorted(SCHEDULERS)


def _each(key: str, *values: Any) -> list[dict[str, Any]]:
    return [{key: value} for value in values]


BETAS = [
    *_each("beta_schedule", "linear", "squaredcos_cap_v2"),
    {"trained_betas": [0.0005 + 0.00001 * i for i in range(1000)]},
    {"num_train_timesteps": 500},
]
BOUNDS = [{"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}]
CLIPS = [{"clip_sample": True}, {"clip_sample": True, "clip_sample_range": 0.7}]
ZERO_SNR = _each("rescale_betas_zero_snr", True)
PLACED = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
ENDS = [{"sigma_min": 0.1, "sigma_max": 10.0, **placed} for placed in PLACED]
FINALS = [{"final_sigmas_type": "sigma_min"}, *({"final_sigmas_type": "sigma_min", **placed} for placed in PLACED)]
ORDERS = _each("solver_order", 1, 2, 3)
ZERO_SNR_V = [{"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}]


def _solvers(algorithms: tuple[str, ...]) -> list[dict[str, Any]]:
    made = []
    for algorithm in algorithms:
        final = "zero" if algorithm.endswith("++") else "sigma_min"
        for solver_type in ("midpoint", "heun"):
            for order in (1, 2) if algorithm == "sde-dpmsolver" else (1, 2, 3):
                made.append(
                    {
                        "algorithm_type": algorithm,
                        "solver_type": solver_type,
                        "solver_order": order,
                        "final_sigmas_type": final,
                    }
                )
    return made


VARIANTS: dict[str, list[dict[str, Any]]] = {
    "DDIMScheduler": [*BETAS, *BOUNDS, *CLIPS, *ZERO_SNR_V, *_each("set_alpha_to_one", False)],
    "DDPMScheduler": [
        *BETAS,
        *_each("beta_schedule", "sigmoid", "laplace"),
        *BOUNDS,
        *CLIPS,
        *ZERO_SNR_V,
        *_each("variance_type", "fixed_small_log", "fixed_large"),
    ],
    "PNDMScheduler": [
        variant | {"skip_prk_steps": skip}
        for variant in [{}, *BETAS, *_each("set_alpha_to_one", True)]
        for skip in (True, False)
    ],
    "LCMScheduler": [
        *BETAS,
        *BOUNDS,
        *CLIPS,
        # ε says nothing of x₀ at the terminal timestep, where this class begins: v does.
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        *_each("original_inference_steps", 100, 30),
        *_each("timestep_scaling", 1.0, 3.0),
    ],
    "LMSDiscreteScheduler": [*BETAS, *PLACED],
    "EulerDiscreteScheduler": [
        *BETAS,
        *PLACED,
        *ENDS,
        *FINALS,
        *ZERO_SNR_V,
        *ZERO_SNR,
        *_each("interpolation_type", "log_linear"),
        {"timestep_type": "continuous", "prediction_type": "v_prediction"},
        {"timestep_type": "continuous"},
    ],
    "EulerAncestralDiscreteScheduler": [*BETAS, *ZERO_SNR, *ZERO_SNR_V],
    "HeunDiscreteScheduler": [*BETAS, *_each("beta_schedule", "exp"), *PLACED, *CLIPS],
    # diffusers' ancestral noise levels are NaN for the cosine schedule's first fall of σ, 20,000 to 2.
    "KDPM2DiscreteScheduler": [*BETAS, *PLACED],
    "KDPM2AncestralDiscreteScheduler": [
        variant for variant in [*BETAS, *PLACED] if variant.get("beta_schedule") != "squaredcos_cap_v2"
    ],
    "DPMSolverSDEScheduler": [variant | {"noise_sampler_seed": 5} for variant in [{}, *BETAS, *PLACED]],
    "DPMSolverMultistepScheduler": [
        *BETAS,
        *BOUNDS,
        *[placed | order for placed in [*PLACED, {"use_lu_lambdas": True}] for order in ORDERS],
        {"use_karras_sigmas": True, "beta_schedule": "squaredcos_cap_v2"},
        {"use_lu_lambdas": True, "beta_schedule": "squaredcos_cap_v2"},
        *FINALS,
        *ZERO_SNR,
        *ZERO_SNR_V,
        *_solvers(("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")),
        *[{"lower_order_final": False, "final_sigmas_type": "sigma_min", **order} for order in ORDERS],
        {"euler_at_final": True, "final_sigmas_type": "sigma_min"},
        {"lambda_min_clipped": -3.0},
        {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", **BOUNDS[0]},
    ],
    "DPMSolverSinglestepScheduler": [
        *BETAS,
        *BOUNDS,
        *[placed | order for placed in PLACED for order in ORDERS],
        *FINALS,
        *_solvers(("dpmsolver", "dpmsolver++", "sde-dpmsolver++")),
        *[{"lower_order_final": True, **order} for order in ORDERS],
        *[{"lower_order_final": True, "final_sigmas_type": "sigma_min", **order} for order in ORDERS],
        {"lambda_min_clipped": -3.0},
    ],
    "DEISMultistepScheduler": [
        *BETAS,
        *BOUNDS,
        *[placed | order for placed in [{}, *PLACED] for order in ORDERS],
        *[{"lower_order_final": False, **order} for order in ORDERS],
    ],
    "UniPCMultistepScheduler": [
        *BETAS,
        *BOUNDS,
        *[placed | order for placed in [{}, *PLACED] for order in (*ORDERS, {"solver_order": 4})],
        *ENDS,
        *FINALS,
        *ZERO_SNR,
        *ZERO_SNR_V,
        *[
            {"predict_x0": predict, "solver_type": kind, "final_sigmas_type": "sigma_min", **order}
            for predict in (True, False)
            for kind in ("bh1", "bh2")
            for order in ORDERS
        ],
        *[{"lower_order_final": False, "final_sigmas_type": "sigma_min", **order} for order in ORDERS],
        {"disable_corrector": [0, 2]},
    ],
}


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """A full configuration of the class: the base, without a clip that a latent model has no use for."""
    defaults = SCHEDULERS[name].DEFAULTS
    base = {**BASE, "clip_sample": False, "steps_offset": 1, "noise_sampler_seed": 5}
    return {key: value for key, value in base.items() if key in defaults} | changes


def frames(name: str) -> Iterator[dict[str, Any]]:
    """Spacing by prediction type, whichever of the two the class has a choice of."""
    choices, defaults = SCHEDULERS[name].CHOICES, SCHEDULERS[name].DEFAULTS
    spacings = [{"timestep_spacing": s} for s in choices["timestep_spacing"] if "timestep_spacing" in defaults] or [{}]
    for spacing in spacings:
        for prediction in choices["prediction_type"]:
            yield {**spacing, "prediction_type": prediction}


def quick_cases(name: str) -> Iterator[tuple[dict[str, Any], int, float]]:
    """Every run with the base, then every frame and every variant with one run each, taken in turn."""
    yield from ((settings(name), steps, strength) for steps, strength in RUNS)
    telling = [run for run in RUNS if run[0] >= 5]
    for i, changes in enumerate([*frames(name), *VARIANTS[name]]):
        yield settings(name, **changes), *telling[i % len(telling)]


def full_cases(name: str) -> Iterator[tuple[dict[str, Any], int, float]]:
    """Every variant in every frame, each over a third of the runs in turn."""
    for i, (frame, variant) in enumerate(product(frames(name), [{}, *VARIANTS[name]])):
        for steps, strength in RUNS[i % 3 :: 3]:
            yield settings(name, **{**frame, **variant}), steps, strength
