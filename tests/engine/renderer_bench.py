"""What the renderer's tests share: a small request, LoRAs for it, and a word to give way after so many steps."""

from collections.abc import Callable
from hashlib import sha256
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save

from farm.config import load_settings
from farm.schemas import InpaintJob
from tests.engine import tiny_checkpoints
from worker.assets import Asset
from worker.renderer import WarmRenderer
from worker.runner import Rendered, RenderRequest

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
MASK = Image.new("L", (64, 64), 0)
MASK.paste(255, (16, 8, 56, 48))


def never() -> bool:
    return False


def make_renderer(folder, **settings) -> WarmRenderer:
    return WarmRenderer(load_settings(**{"model_path": folder, "device": "cpu", "size_buckets": ["64x64"], **settings}))


def lora_asset(renderer: WarmRenderer, seed: int = 0, kind: str = "inpaint") -> Asset:
    data = save({name: tensor.contiguous() for name, tensor in tiny_checkpoints.lora(kind, seed=seed).items()})
    return Asset(sha256(data).hexdigest(), renderer.read_lora(data), len(data), "remote")


def make_request(
    *,
    loras: tuple[Asset, ...] = (),
    seed: int = 0,
    image: Image.Image = IMAGE,
    mask: Image.Image = MASK,
    on_step: Callable[[], object] = lambda: None,
    resume: bytes | None = None,
    preempted: Callable[[], bool] = never,
    embeddings: tuple = (),
    ip_adapter: Any = None,
    **fields: Any,
) -> RenderRequest:
    refs = [{"path": f"s3://photos/{asset.sha256[:8]}.safetensors", "scale": 0.7} for asset in loras]
    job = InpaintJob(**{"image": "s3://photos/b", "num_inference_steps": 3, "prompt": "a cup", "loras": refs, **fields})
    pairs = tuple(zip(job.loras, loras, strict=True))
    return RenderRequest(job, image, mask, seed, on_step, pairs, embeddings, ip_adapter, resume, preempted)


def after(steps: int) -> Callable[[], bool]:
    """True from the asking after step `steps` on; the first asking comes before the first step."""
    asked = iter(range(10_000))
    return lambda: next(asked) >= steps


def pixels(rendered: Rendered) -> list[np.ndarray]:
    return [np.asarray(image) for image in rendered.images]


def same(one: Rendered, two: Rendered) -> bool:
    """Bit for bit."""
    return all((a == b).all() for a, b in zip(pixels(one), pixels(two), strict=True))


def apart(one: Rendered, two: Rendered) -> int:
    """The largest difference of a channel, of 255."""
    pairs = zip(pixels(one), pixels(two), strict=True)
    return max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in pairs)
