"""A render that gives way after a step goes on there, in another process' renderer, to the same bits."""

import logging
import threading
from dataclasses import replace

import pytest
from PIL import Image
from safetensors.torch import load, save

from farm.errors import Preempted
from tests.engine.renderer_bench import IMAGE, MASK, after, apart, lora_asset, make_renderer, make_request, same
from worker.preemption import Preemption
from worker.saved_state import StateRefused, unpack

ANEW = "saved state damaged or of another version, started anew"


@pytest.fixture(scope="module")
def renderers(tiny_checkpoint):
    """Two workers with the same checkpoint."""
    folder = tiny_checkpoint()
    return make_renderer(folder), make_renderer(folder)


def stopped(renderer, request, steps, *, before=0) -> Preemption:
    """What a render leaves that was told to give way after so many steps of its own."""
    with pytest.raises(Preemption) as caught:
        renderer.render(replace(request, preempted=after(steps)))
    assert caught.value.step == before + steps
    return caught.value


@pytest.fixture(scope="module")
def state(renderers):
    """The state of a small job after two of its three steps."""
    return stopped(renderers[0], make_request(seed=3), 2).state


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "dpmpp_2m_sde", "dpmpp_sde"])
def test_a_job_of_30_steps_resumes_at_its_step_to_the_same_bits(renderers, scheduler, caplog):
    first, second = renderers
    job = {
        "scheduler": scheduler,
        "num_inference_steps": 30,
        "num_images_per_prompt": 2,
        "guidance_scale": 6.0,
        "negative_prompt": "a hat",
        "eta": 0.3,
        "seed": 11,
    }
    whole = first.render(make_request(loras=(lora_asset(first),), **job))
    with caplog.at_level(logging.INFO):
        saved = stopped(first, make_request(loras=(lora_asset(first),), **job), 11)
    assert f"{len(saved.state)} bytes of state" in caplog.text

    steps = []
    request = make_request(loras=(lora_asset(second),), on_step=lambda: steps.append(1), resume=saved.state, **job)
    again = stopped(second, request, 7, before=11)  # taken away once more
    assert len(steps) == 7
    steps.clear()
    rendered = first.render(
        make_request(loras=(lora_asset(first),), on_step=lambda: steps.append(1), resume=again.state, **job)
    )
    evaluations = 59 if scheduler == "dpmpp_sde" else 30  # that one is of second order
    assert len(steps) == evaluations - 18
    assert same(rendered, whole)
    assert rendered.warnings == ()


def test_a_job_that_gave_way_after_its_last_step_is_only_decoded(renderers):
    first, second = renderers
    saved = stopped(first, make_request(), 3)
    steps = []
    rendered = second.render(make_request(on_step=lambda: steps.append(1), resume=saved.state))
    assert not steps and same(rendered, first.render(make_request()))


OTHERS = {
    "prompt": {"prompt": "a hat"},
    "seed": {"seed": 4},
    "image": {"image": IMAGE.rotate(90)},
    "mask": {"mask": Image.new("L", (64, 64), 255)},
    "priority": {"priority": 51},
}


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS.keys())
def test_a_state_of_another_job_is_not_used(renderers, state, changes):
    request = make_request(**{"seed": 3, **changes})
    rendered = renderers[0].render(replace(request, resume=state))
    assert rendered.warnings == (ANEW,)
    assert same(rendered, renderers[0].render(request))


def test_a_state_with_another_lora_is_not_used(renderers):
    renderer = renderers[0]
    loras = lora_asset(renderer, 0), lora_asset(renderer, 1)
    saved = stopped(renderer, make_request(loras=loras[:1]), 1)
    other = replace(make_request(loras=loras[:1]), loras=((make_request(loras=loras[:1]).job.loras[0], loras[1]),))
    assert renderer.render(replace(other, resume=saved.state)).warnings == (ANEW,)


@pytest.mark.parametrize("fact", ["checkpoint", "version", "torch", "dtype", "device"])
def test_a_state_of_another_model_or_version_is_not_used(renderers, state, fact, monkeypatch):
    renderer, changed = (
        renderers[0],
        {
            "checkpoint": ("worker.renderer.WarmRenderer.checkpoint_sha256", "f" * 64),
            "version": ("farm.__version__", "0.0.0"),
            "torch": ("torch.__version__", "0.0.0"),
        },
    )
    request = make_request(seed=3, resume=state)
    if fact == "checkpoint":
        monkeypatch.setattr(renderer, "checkpoint_sha256", "f" * 64)
    elif fact in changed:
        monkeypatch.setattr(*changed[fact])
    else:
        facts = dict(renderer._facts(request))
        monkeypatch.setattr(renderer, "_facts", lambda _: facts | {fact: "another"})
    assert renderer.render(request).warnings == (ANEW,)


def damaged(state: bytes, kind: str) -> bytes:
    tensors = load(state)
    match kind:
        case "empty":
            return b""
        case "pickle":
            return b"\x80\x04K\x01."
        case "cut":
            return state[:-100]
        case "one bit":  # in the latents, where no reader of the format would notice
            changed = bytearray(state)
            changed[len(changed) // 2] ^= 1
            return bytes(changed)
        case "metadata gone":
            return save(tensors)
        case "of an earlier format":
            return state.replace(b"inpaint-farm-state/2", b"inpaint-farm-state/1")
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["empty", "pickle", "cut", "one bit", "metadata gone", "of an earlier format"])
def test_a_damaged_state_is_not_used(renderers, state, kind):
    request = make_request(seed=3)
    blob = damaged(state, kind)
    with pytest.raises(StateRefused):
        unpack(blob, renderers[0]._facts(request), "cpu")
    rendered = renderers[0].render(replace(request, resume=blob))
    assert rendered.warnings == (ANEW,) and same(rendered, renderers[0].render(request))


def test_a_job_that_waits_its_turn_gives_way_at_once(renderers):
    renderer = renderers[0]
    inside, go_on, outcome = threading.Event(), threading.Event(), []

    def hold():
        inside.set()
        assert go_on.wait(30)

    first = threading.Thread(target=lambda: outcome.append(renderer.render(make_request(on_step=hold))))
    first.start()
    assert inside.wait(30)
    with pytest.raises(Preempted) as caught:
        renderer.render(make_request(preempted=lambda: True))
    assert not isinstance(caught.value, Preemption)
    assert not outcome, "the other still has the device"
    go_on.set()
    first.join(30)
    assert len(outcome) == 1
    with pytest.raises(Preempted):  # and when its turn has come
        renderer.render(make_request(preempted=lambda: True))


def test_what_the_question_raises_ends_the_render(renderers):
    def canceled():
        raise KeyError("canceled")

    with pytest.raises(KeyError):
        renderers[0].render(make_request(preempted=canceled))
    assert apart(renderers[0].render(make_request()), renderers[1].render(make_request(mask=MASK))) == 0
