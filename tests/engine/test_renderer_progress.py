"""The counter that says the device is alive, what is counted, and how long a job will take."""

import math
import threading
from types import SimpleNamespace

import pytest

from farm import metrics
from tests.engine.renderer_bench import after, lora_asset, make_renderer, make_request
from worker.engine.stopwatch import Work
from worker.pace import Pace
from worker.preemption import Preemption


@pytest.fixture(scope="module")
def renderer(tiny_checkpoint):
    return make_renderer(tiny_checkpoint(), size_buckets=["64x64", "64x96"])


def counted(name: str) -> float:
    return metrics.REGISTRY.get_sample_value(name)


def test_the_warm_up_is_not_counted(tiny_checkpoint):
    renderer = make_renderer(tiny_checkpoint())
    before = counted("farm_denoise_steps_total"), counted("farm_engine_busy_seconds_total")
    renderer.warm_up()
    assert (counted("farm_denoise_steps_total"), counted("farm_engine_busy_seconds_total")) == before
    assert renderer.progress() > 0
    renderer.render(make_request(num_inference_steps=3, num_images_per_prompt=2))
    assert counted("farm_denoise_steps_total") - before[0] == 3 * 2
    assert counted("farm_engine_busy_seconds_total") > before[1]


def test_steps_of_a_render_that_gave_way_are_counted_once(renderer):
    before = counted("farm_denoise_steps_total")
    with pytest.raises(Preemption) as caught:
        renderer.render(make_request(num_inference_steps=5, preempted=after(2)))
    assert counted("farm_denoise_steps_total") - before == 2
    renderer.render(make_request(num_inference_steps=5, resume=caught.value.state))
    assert counted("farm_denoise_steps_total") - before == 5


def test_every_forward_moves_the_counter(renderer):
    """So that it moves within a long step, a long text and a large picture, too, and not only between them."""
    pipe = renderer._pipe
    moves = {}

    def watch(model, name):
        original = getattr(model, name)

        def around(*args, **named):
            begin = renderer.progress()
            result = original(*args, **named)
            moves.setdefault(name, []).append(renderer.progress() - begin)
            return result

        setattr(model, name, around)
        return lambda: delattr(model, name)

    undo = [watch(pipe.vae, "encode"), watch(pipe.vae, "decode"), watch(pipe.unet, "forward")]
    before = renderer.progress()
    renderer.render(make_request(num_inference_steps=2))
    for one in undo:
        one()
    assert all(count >= 3 for counts in moves.values() for count in counts), moves
    assert len(moves["forward"]) == 2 and renderer.progress() - before > sum(map(sum, moves.values()))


def test_rendering_says_whether_a_render_has_the_device(renderer):
    seen = []
    assert not renderer.rendering
    renderer.render(make_request(on_step=lambda: seen.append(renderer.rendering)))
    assert seen == [True] * 3 and not renderer.rendering
    with pytest.raises(ZeroDivisionError):
        renderer.render(make_request(on_step=lambda: 1 // 0))
    assert not renderer.rendering


def test_nothing_is_known_before_the_first_render(tiny_checkpoint):
    renderer = make_renderer(tiny_checkpoint())
    assert renderer.estimate_seconds(make_request()) == math.inf
    renderer.warm_up()
    assert 0 < renderer.estimate_seconds(make_request()) < 60


def test_an_estimate_grows_with_the_work(tiny_checkpoint):
    renderer = make_renderer(tiny_checkpoint())
    renderer.warm_up()
    base = make_request(num_inference_steps=20, guidance_scale=5.0)
    seconds = renderer.estimate_seconds(base)

    def ratio(**fields):
        return (
            renderer.estimate_seconds(make_request(**{"num_inference_steps": 20, "guidance_scale": 5.0, **fields}))
            / seconds
        )

    assert ratio(num_inference_steps=200) > 4
    assert ratio(num_images_per_prompt=4) == pytest.approx(4)
    assert ratio(strength=0.5) < 0.8
    assert ratio(scheduler="heun") > 1.2
    assert ratio(guidance_scale=1.0) == pytest.approx(0.5, abs=0.1)  # encoding and decoding take as long


def test_an_estimate_is_about_what_it_takes(renderer):
    for _ in range(3):
        renderer.render(make_request(num_inference_steps=10))
    expected = renderer.estimate_seconds(make_request(num_inference_steps=40))
    timings = renderer.render(make_request(num_inference_steps=40)).timings
    taken = sum(timings[stage] for stage in ("vae_encode", "denoise", "vae_decode"))
    assert expected / 5 < taken < expected * 5  # a busy machine may be slow; an estimate of another order is wrong


def test_within_the_render_it_is_what_is_left(renderer):
    left, jobs = [], []
    request = make_request(num_inference_steps=4, on_step=lambda: left.append(renderer.estimate_seconds(jobs[0])))
    jobs.append(request)
    whole = renderer.estimate_seconds(request)
    renderer.render(request)
    assert len(left) == 4 and left == sorted(left, reverse=True) and left[0] < whole and left[-1] > 0


def test_another_jobs_estimate_is_its_own(renderer):
    inside, go_on = threading.Event(), threading.Event()

    def hold():
        inside.set()
        assert go_on.wait(30)

    other = make_request(num_inference_steps=7)
    alone = renderer.estimate_seconds(other)
    thread = threading.Thread(target=lambda: renderer.render(make_request(num_inference_steps=1, on_step=hold)))
    thread.start()
    assert inside.wait(30)
    assert renderer.estimate_seconds(other) == pytest.approx(alone, rel=0.5)
    go_on.set()
    thread.join(30)


def test_pace_learns_and_scales():
    pace, small, large = Pace(), Work(64, 64, 2), Work(128, 128, 2)
    assert pace.seconds("denoise", small) == math.inf
    pace.observe("denoise", small, 1.0)
    assert pace.seconds("denoise", small) == 1.0
    assert pace.seconds("denoise", large) == 4.0
    assert pace.seconds("vae_decode", small) == math.inf
    for _ in range(30):
        pace.observe("denoise", small, 3.0)
    assert pace.seconds("denoise", small) == pytest.approx(3.0, abs=0.01)
    pace.observe("denoise", Work(128, 120, 2), 5.0)
    assert pace.seconds("denoise", large) == pytest.approx(5.0 * 128 / 120), "the nearest size, not the first"


def test_busy_are_the_forwards_and_nothing_else(tiny_checkpoint, monkeypatch):
    """On a clock that a forward moves by 1 s, and everything else that the engine does by 1,000."""
    renderer, now = make_renderer(tiny_checkpoint()), [0.0]
    monkeypatch.setattr("worker.engine.stopwatch.time", SimpleNamespace(monotonic=lambda: now[0]))
    pipe = renderer._pipe
    forwards = []

    def taking(owner, name, seconds):
        original = getattr(owner, name)

        def around(*args, **named):
            now[0] += seconds
            forwards.extend([name] * (seconds == 1))
            return original(*args, **named)

        monkeypatch.setattr(owner, name, around)

    for network in (pipe.unet, pipe.text_encoder, pipe.vae.encoder, pipe.vae.decoder):
        taking(network, "forward", 1)
    for owner, name in (
        (renderer.engine.merger, "set_adapters"), (pipe, "begin"), (pipe, "judge"), (pipe, "tokenizer"),
        (pipe.unet, "text_keys_values"), (renderer, "worked"),
    ):  # fmt: skip
        taking(owner, name, 1000)
    before = counted("farm_engine_busy_seconds_total")
    asset = lora_asset(renderer)
    renderer.render(make_request(num_inference_steps=3, loras=(asset,)))
    assert len(forwards) == 3 + 2 + 1 + 1 and now[0] > 5000, "steps, two texts, the masked picture, the picture"
    assert counted("farm_engine_busy_seconds_total") - before == len(forwards)
