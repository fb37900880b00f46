"""Running one call through both pipelines and holding the results against each other."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.engine import tiny_checkpoints
from tests.engine.pictures import hole, picture

LATENTS_TOLERANCE = 1e-4  # relative, Euclidean
PICTURE_TOLERANCE = 1.5 / 255  # one 8-bit step, wherever the float in between falls


def generator(seed: int = 42) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def run(pipe: Any, arguments: dict[str, Any]) -> Any:
    """The call's images; `seed` (an int, or a list) becomes fresh generators, `global_seed` torch's own state."""
    arguments = {"prompt": "a red cat", "image": picture(), "mask_image": hole(), "num_inference_steps": 4, **arguments}
    seed = arguments.pop("seed", 42)
    if seed is not None:
        arguments["generator"] = [generator(s) for s in seed] if isinstance(seed, list) else generator(seed)
    torch.manual_seed(arguments.pop("global_seed", 7))
    return pipe(**arguments).images


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


def pixels(images: Any) -> np.ndarray:
    """Whatever `output_type` gave, as float [N, H, W, 3] in 0..1."""
    if isinstance(images, torch.Tensor):
        return images.permute(0, 2, 3, 1).double().numpy()
    return np.stack(
        [np.asarray(image, dtype=np.float64) / (255 if isinstance(image, Image.Image) else 1) for image in images]
    )


def assert_same_latents(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = LATENTS_TOLERANCE) -> None:
    error = relative_error(ours, theirs)
    assert error <= tolerance, f"latents differ by {error:.2e} of their norm"


def assert_same_pictures(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    difference = np.abs(pixels(ours) - pixels(theirs)).max()
    assert difference <= PICTURE_TOLERANCE, f"pictures differ by {difference * 255:.1f}/255"


def assert_parity(kind: str, ours: Any = None, theirs: Any = None, **arguments: Any) -> None:
    """One call of both, compared: latents where `output_type` is "latent" (the default here), else pictures."""
    arguments = {"output_type": "latent", **arguments}
    theirs = run(theirs or tiny_checkpoints.oracle(kind), dict(arguments))
    ours = run(ours or tiny_checkpoints.ours(kind), dict(arguments))
    if arguments["output_type"] == "latent":
        assert_same_latents(ours, theirs)
    else:
        assert_same_pictures(ours, theirs)
