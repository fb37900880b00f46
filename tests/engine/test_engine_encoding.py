"""Pictures of calls that begin together go through the VAE's encoder together where that is quicker."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_same_latents, generator, relative_error
from tests.engine.pictures import hole, picture
from worker.engine import InpaintEngine, schedulers
from worker.engine.engine import SMALLER
from worker.engine.errors import NonFiniteOutput
from worker.engine.listener import Listener
from worker.engine.picture_cache import PictureCache
from worker.engine.stopwatch import Work
from worker.engine.submission import GaveWay, Painted, Submission

WAIT = 120.0  # seconds; a machine may be slow


class Heard(Listener):
    """What an engine told."""

    def __init__(self) -> None:
        self.encoded: list[tuple[Work, float]] = []
        self.shortages = 0

    def worked(self, stage: str, work: Work, seconds: float) -> None:
        if stage == "vae_encode":
            self.encoded.append((work, seconds))

    def short_of_memory(self) -> None:
        self.shortages += 1


class Engine(InpaintEngine):
    """A small one, which counts the pictures in each forward of its encoder."""

    def __init__(self, kind: str = "inpaint", *, batches: bool = True) -> None:
        self.heard = Heard()
        super().__init__(tiny_checkpoints.load_ours(kind), listener=self.heard)
        if batches:  # as on a GPU
            self._beginnings.batches = True
        self.encodes: list[int] = []
        self.pipe.vae.encoder.register_forward_pre_hook(lambda _, given: self.encodes.append(len(given[0])))

    def paint(self, *calls: Submission) -> list[Painted | BaseException]:
        """What comes of them when they are admitted at once."""
        with self._work:
            futures = [self.submit(call) for call in calls]
        return [future.exception(WAIT) or future.result() for future in futures]


@pytest.fixture
def engine():
    made = Engine()
    yield made
    made.close()


def call(*seeds: int, shows: Image.Image | None = None, **changes: Any) -> Submission:
    """Each image of a picture of its own, or all of what is shown."""
    conduct = {name: changes.pop(name) for name in ("give_way", "resume") if name in changes}
    arguments = {
        "prompt": "a red cat",
        "image": [shows or picture(seed=seed) for seed in seeds],
        "mask_image": [hole()] * len(seeds),
        "num_images_per_prompt": len(seeds),
        "num_inference_steps": 2,
        "generator": [generator(seed) for seed in seeds],
        **changes,
    }
    scheduler = schedulers.from_config(tiny_checkpoints.ours("inpaint").scheduler.config)
    return Submission(arguments, scheduler, **conduct)


def crowd() -> list[Submission]:
    return [call(1), call(2, 3), call(4, strength=0.6, num_inference_steps=5)]


# The masked pictures, and the picture that less strength starts from; a plain UNet sees pictures, never masked ones.
@pytest.mark.parametrize(("kind", "pictures"), [("inpaint", 4 + 1), ("plain", 4), ("asymmetric", 4 + 1)])
def test_one_forward_for_all_and_each_is_what_it_is_alone(kind: str, pictures: int) -> None:
    together, one_by_one = Engine(kind), Engine(kind, batches=False)
    painted = together.paint(*crowd())
    solo = [one for each in crowd() for one in one_by_one.paint(each)]
    assert together.encodes == [pictures] and one_by_one.encodes == [1] * pictures, "a CPU's way is one by one"
    for ours, theirs in zip(painted, solo, strict=True):
        for name in ("latents", "masked_image_latents", "image_latents"):
            if getattr(theirs.request, name) is not None:
                assert_same_latents(getattr(ours.request, name), getattr(theirs.request, name), 1e-5)
    assert together.paint(call(2, 4)) and together.encodes == [pictures], "they are known by now"
    together.close(), one_by_one.close()


def test_what_is_the_same_is_encoded_once(engine) -> None:
    shown = picture()
    engine.paint(call(1, 2, shows=shown), call(3, shows=shown), call(4))
    assert engine.encodes == [2]


def test_one_that_goes_on_brings_no_picture(engine) -> None:
    (stopped,) = engine.paint(call(1, give_way=lambda ticket: ticket.request is not None))
    assert isinstance(stopped, GaveWay) and engine.encodes == [1]
    engine.paint(call(1, resume=stopped.request), call(2), call(3))
    assert engine.encodes == [1, 2]


def test_without_memory_for_all_they_are_encoded_one_by_one(engine, monkeypatch) -> None:
    forward = engine.pipe.vae.encoder.forward

    def cramped(pictures: torch.Tensor) -> torch.Tensor:
        if len(pictures) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(pictures)

    monkeypatch.setattr(engine.pipe.vae.encoder, "forward", cramped)
    painted = engine.paint(*crowd())
    assert [one.notes for one in painted] == [(SMALLER,)] * 3
    assert engine.encodes == [5, 1, 1, 1, 1, 1] and engine.heard.shortages == 1


def test_a_picture_that_fails_fails_alone(engine, monkeypatch) -> None:
    forward = engine.pipe.vae.encoder.forward

    def choosy(pictures: torch.Tensor) -> torch.Tensor:
        if (pictures.amin(dim=(1, 2, 3)) == 0).any():  # white where it is kept, grey in the hole
            raise RuntimeError("a picture that this kernel does not like")
        return forward(pictures)

    monkeypatch.setattr(engine.pipe.vae.encoder, "forward", choosy)
    first, white, last = engine.paint(call(1), call(2, shows=Image.new("RGB", (64, 64), "white")), call(3))
    assert isinstance(first, Painted) and isinstance(last, Painted)
    assert isinstance(white, RuntimeError) and "does not like" in str(white)
    assert engine.encodes == [3, 1, 1, 1]


def test_a_picture_that_makes_nan_fails_alone(engine, monkeypatch) -> None:
    forward = engine.pipe.vae.encoder.forward

    def spoiled(pictures: torch.Tensor) -> torch.Tensor:
        white = pictures.amin(dim=(1, 2, 3)) == 0
        return forward(pictures).masked_fill(white[:, None, None, None], torch.nan)

    monkeypatch.setattr(engine.pipe.vae.encoder, "forward", spoiled)
    first, white, last = engine.paint(call(1), call(2, shows=Image.new("RGB", (64, 64), "white")), call(3))
    assert engine.encodes == [3] and isinstance(white, NonFiniteOutput)
    assert isinstance(first, Painted) and isinstance(last, Painted)


def test_the_seconds_are_shared_out_by_rows(engine, monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("worker.engine.stopwatch.time", SimpleNamespace(monotonic=lambda: now[0]))

    def tick(*_: object) -> None:
        now[0] += 14.0

    engine.paint(call(9))
    engine.pipe.vae.encoder.register_forward_hook(tick)
    calls = [call(1), call(2, 3), call(4, guidance_scale=1.0), call(9)]
    painted = engine.paint(*calls)
    assert [one.seconds["vae_encode"] for one in painted] == [4.0, 8.0, 2.0, 0.0], "2, 4 and 1 rows; the last is known"
    assert engine.heard.encoded[1] == (Work(64, 64, 4), 14.0)


def test_what_is_kept_of_a_batch_is_its_rows() -> None:
    vae = tiny_checkpoints.ours("inpaint").vae
    pictures = torch.rand(3, 3, 32, 48, generator=generator()) * 2 - 1
    cache = PictureCache(vae)
    with torch.inference_mode():
        cache.encode(pictures[:1])
        missing = cache.missing(pictures[[0, 1, 2, 2]].split(1))
        assert len(missing) == 2
        cache.encode_together(missing)
        assert not cache.missing(pictures.split(1))
        for one in pictures.split(1):
            kept = cache.encode(one).moments
            assert relative_error(kept, vae.encode(one).moments) < 1e-5
            assert kept.untyped_storage().nbytes() == kept.nbytes, "and not the batch's memory"
