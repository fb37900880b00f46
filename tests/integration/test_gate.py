"""The gate in the runner: what is written, what the result says, over a real Redis and store."""

import numpy as np
import pytest
from PIL import Image

from farm.states import JobState
from tests.integration.test_runner import Bench, Painter, png
from worker.gatekeeper import another_seed
from worker.runner import Rendered


class Copyist(Painter):
    """Leaves what is around the mask as it was and inverts what is in it, for its good seeds; else all is red."""

    def __init__(self, good=()):
        super().__init__()
        self.good, self.seeds = set(good), []

    def render(self, request):
        self.seeds.append(request.seed)
        self.rendered += 1
        pictures = []
        for seed in range(request.seed, request.seed + request.job.num_images_per_prompt):
            picture = Image.new("RGB", request.image.size, (255, 0, 0))
            if seed in self.good:
                picture = request.image.copy()
                picture.paste(Image.eval(request.image, lambda v: 255 - v), mask=request.mask)
            pictures.append(picture)
        return Rendered(pictures, {"denoise": 0.01})


def bench_of(painter, local_store, redis_url, tmp_path, **settings):
    bench = Bench(local_store, f"file://{tmp_path / 'store'}", redis_url, **settings)
    bench.runner._renderer = painter
    photo = Image.fromarray(np.linspace(40, 200, 96 * 64, dtype=np.uint8).reshape(64, 96)).convert("RGB")
    photo.paste((10, 10, 10), (40, 20, 80, 50))  # a dark thing, right where the mask is
    bench.put("photo.png", png(photo))
    return bench


@pytest.fixture
def made(local_store, redis_url, tmp_path):
    return lambda painter, **settings: bench_of(painter, local_store, redis_url, tmp_path, **settings)


def ended(bench, **fields):
    handle = bench.submit(**fields)
    assert bench.run(handle) is JobState.SUCCEEDED
    return handle.result(timeout=5)


def test_a_good_picture_needs_no_review(made):
    painter = Copyist({7})
    result = ended(made(painter, gate_retries=2), seed=7)
    assert (result.needs_review, result.rerenders, painter.seeds) == (False, 0, [7])
    scores = result.outputs[0].scores
    assert scores.worst < 1 and scores.colour_shift < 1


def test_a_rejected_picture_is_written_and_marked_by_default(made):
    painter = Copyist()
    result = ended(made(painter), custom_id="x")
    assert (result.needs_review, result.rerenders, painter.rendered) == (True, 0, 1)
    assert result.outputs[0].scores.worst > 1 and result.receipt.max_abs_diff_outside == 0


def test_a_rejected_picture_is_painted_again_before_anything_is_written(made):
    painter = Copyist()
    bench = made(painter, gate_retries=3)
    handle = bench.submit()
    first = int(handle.id[:8], 16)
    painter.good = {another_seed(first, 2)}
    bench.run(handle)
    result = handle.result(timeout=5)
    assert painter.seeds == [first, another_seed(first, 1), another_seed(first, 2)]
    assert (result.needs_review, result.rerenders, result.seed) == (False, 2, first)
    assert result.outputs[0].seed == another_seed(first, 2) and len(result.outputs) == 1
    assert result.timings["denoise"] == pytest.approx(0.03)


def test_a_job_says_for_itself_how_often(made):
    painter = Copyist()
    result = ended(made(painter), seed=5, gate_retries=1)
    assert painter.seeds == [5, another_seed(5, 1)] and result.needs_review


def test_several_pictures_each_have_the_seed_that_made_them(made):
    painter = Copyist({5, another_seed(5, 1)})
    result = ended(made(painter), seed=5, num_images_per_prompt=2, gate_retries=1)
    assert [output.seed for output in result.outputs] == [5, another_seed(5, 1)] and not result.needs_review
