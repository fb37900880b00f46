"""Many calls at once through one engine: each is what it is alone, and what fails fails alone."""

import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_same_latents, generator
from tests.engine.pictures import hole, picture
from worker.engine import InpaintEngine, schedulers
from worker.engine.errors import InvalidParameter, LoraIncompatible, NonFiniteOutput
from worker.engine.faults import DeviceLost
from worker.engine.lora import Adapter, LoraMerger, LoraWeights, read_lora
from worker.engine.lora.choice import Costs
from worker.engine.submission import GaveWay, Painted, Submission, Ticket

WAIT = 120.0  # seconds; a machine may be slow
ROWS = (1, 2, 4, 8, 16)
# A batch costs what one row does, and a merge as much as many steps: whoever believes this mixes what he can.
MIXING = Costs(dict.fromkeys(ROWS, 1.0), {0: 50.0, 16: 50.0}, {(16, 1): 0.01})
# The other way round: rows are dear, merging is free.
TURNS = Costs({rows: float(rows) for rows in ROWS}, {0: 0.0, 16: 0.0}, {(16, 1): 1.0})


@pytest.fixture
def engine():
    made = InpaintEngine(tiny_checkpoints.load_ours("inpaint"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def loras():
    table = InpaintEngine(tiny_checkpoints.ours("inpaint")).merger.table
    return [read_lora(tiny_checkpoints.lora("inpaint", seed=seed), table) for seed in range(3)]


def submission(*, seeds=(1,), scheduler="DDIMScheduler", loras=(), **changes: Any) -> Submission:
    conduct = {name: changes.pop(name) for name in ("on_step", "give_way", "resume") if name in changes}
    arguments = {
        "prompt": "a red cat",
        "image": [picture()] * len(seeds),
        "mask_image": [hole()] * len(seeds),
        "num_images_per_prompt": len(seeds),
        "num_inference_steps": 5,
        "generator": [generator(seed) for seed in seeds],
        **changes,
    }
    made = schedulers.from_config(tiny_checkpoints.ours("inpaint").scheduler.config, _class_name=scheduler)
    return Submission(arguments, made, tuple(Adapter(one, scale, scale) for one, scale in loras), **conduct)


def alone(**changes: Any) -> torch.Tensor:
    """The latents of the pipeline's own call."""
    pipe = tiny_checkpoints.ours("inpaint")
    one = submission(**changes)
    pipe = type(pipe)(**{**pipe.components, "scheduler": one.scheduler})
    pipe.set_progress_bar_config(disable=True)
    merger = LoraMerger(pipe.unet, pipe.text_encoder)
    merger.set_adapters(one.loras)
    try:
        return pipe(**one.arguments, output_type="latent").images
    finally:
        merger.restore()


def crowd(loras: list[LoraWeights]) -> list[dict[str, Any]]:
    one, two, three = loras
    return [
        {"seeds": (1,), "loras": [(one, 0.7)]},
        {
            "seeds": (2,),
            "loras": [(two, 1.0)],
            "num_inference_steps": 9,
            "scheduler": "EulerAncestralDiscreteScheduler",
        },
        {"seeds": (3, 4), "guidance_scale": 1.0, "loras": [(one, 0.7), (three, -0.5)]},
        {"seeds": (5,), "strength": 0.6, "num_inference_steps": 8, "scheduler": "DPMSolverMultistepScheduler"},
        {"seeds": (6,), "loras": [(one, 0.2)], "prompt": "a dog", "negative_prompt": "cats", "eta": 1.0},
        {"seeds": (7,), "loras": [(two, 1.0)], "num_inference_steps": 3, "scheduler": "HeunDiscreteScheduler"},
        {"seeds": (8,), "loras": [(three, 1.0)], "height": 32, "width": 48},
    ]


@pytest.mark.parametrize("costs", [None, TURNS, MIXING], ids=["unmeasured", "in turns", "mixed"])
def test_each_call_is_what_it_is_alone(engine, loras, costs) -> None:
    if costs:
        engine.use(costs, 64, 64)
    calls = crowd(loras)
    futures = [engine.submit(submission(**call)) for call in calls]
    painted = [future.result(WAIT) for future in futures]
    for call, one in zip(calls, painted, strict=True):
        assert_same_latents(one.request.latents, alone(**call), 1e-4)
        assert len(one.pictures) == len(call["seeds"]) and set(one.seconds) == {"vae_encode", "denoise", "vae_decode"}
    modes = {one.lora_mode for call, one in zip(calls, painted, strict=True) if "loras" in call}
    assert modes == {"mixed"} if costs is MIXING else modes <= {"merged"}


def test_a_call_that_others_join_changes_from_merged_to_mixed(engine, loras) -> None:
    """Its LoRA is in the weights when a job with another comes: it goes on to the same picture, beside its own rows."""
    engine.use(Costs(MIXING.step, {0: 0.0, 16: 0.0}, {(16, 1): 0.5, (16, 2): 0.01}), 64, 64)
    joined = []

    def invite(ticket: Ticket) -> None:
        if ticket.request.step_index == 3:
            joined.append(engine.submit(submission(seeds=(2,), loras=[(loras[1], 1.0)], num_inference_steps=6)))

    calls = [{"loras": [(loras[0], 1.0)], "num_inference_steps": 9}, {"seeds": (2,), "loras": [(loras[1], 1.0)]}]
    first = engine.submit(submission(**calls[0], on_step=invite)).result(WAIT)
    assert first.lora_mode == "merged+mixed"
    assert_same_latents(first.request.latents, alone(**calls[0]), 1e-4)
    second = joined[0].result(WAIT)
    assert "mixed" in second.lora_mode
    assert_same_latents(second.request.latents, alone(**calls[1], num_inference_steps=6), 1e-4)


def test_what_one_raises_is_its_own(engine) -> None:
    def refuse(ticket: Ticket) -> None:
        raise KeyError("stop")

    calls = [submission(seeds=(1,)), submission(seeds=(2,), on_step=refuse), submission(seeds=(3,))]
    first, second, third = [engine.submit(call) for call in calls]
    with pytest.raises(KeyError):
        second.result(WAIT)
    assert_same_latents(first.result(WAIT).request.latents, alone(seeds=(1,)), 1e-4)
    assert_same_latents(third.result(WAIT).request.latents, alone(seeds=(3,)), 1e-4)


def test_a_call_that_gives_way_goes_on_to_the_same_bits(engine) -> None:
    whole = engine.submit(submission()).result(WAIT).request.latents
    stop = submission(give_way=lambda ticket: ticket.request is not None and ticket.request.step_index == 2)
    with pytest.raises(GaveWay) as caught:
        engine.submit(stop).result(WAIT)
    assert caught.value.request.step_index == 2
    resumed = engine.submit(submission(resume=caught.value.request)).result(WAIT)
    assert torch.equal(resumed.request.latents, whole)


def test_bad_arguments_are_refused_at_once(engine) -> None:
    with pytest.raises(InvalidParameter, match="strength"):
        engine.submit(submission(strength=2.0))
    assert not engine.busy


def test_a_lora_of_another_model_is_refused_at_once(engine) -> None:
    other = InpaintEngine(tiny_checkpoints.load_ours("sd2"))
    foreign = read_lora(tiny_checkpoints.lora("sd2"), other.merger.table)
    other.close()
    with pytest.raises(LoraIncompatible):
        engine.submit(submission(seeds=(2,), loras=[(foreign, 1.0)]))


def test_whose_fault_a_failed_forward_was_is_found(engine, monkeypatch) -> None:
    """A row that makes the UNet fail: the others of its batch are painted all the same."""
    forward = engine.pipe.unet.forward

    def choosy(sample, *rest, **named):
        if (sample[:, :4].abs() > 1e6).any():
            raise RuntimeError("a row that this kernel does not like")
        return forward(sample, *rest, **named)

    def spoil(ticket: Ticket) -> None:
        ticket.request.latents.fill_(1e9)

    monkeypatch.setattr(engine.pipe.unet, "forward", choosy)
    calls = [submission(seeds=(1,)), submission(seeds=(2,), on_step=spoil), submission(seeds=(3,))]
    first, second, third = [engine.submit(call) for call in calls]
    with pytest.raises(RuntimeError, match="does not like"):
        second.result(WAIT)
    for future, seed in ((first, 1), (third, 3)):
        assert_same_latents(future.result(WAIT).request.latents, alone(seeds=(seed,)), 1e-4)


def test_pictures_are_decoded_together(engine, monkeypatch) -> None:
    """As on a GPU; and of several, one that is no picture fails alone."""
    monkeypatch.setattr(engine, "_decodes_with", lambda ticket: "all")
    rows = []
    engine.pipe.vae.decoder.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))

    def spoil(ticket: Ticket) -> None:
        ticket.request.latents.fill_(torch.nan)

    futures = [engine.submit(submission(seeds=seeds)) for seeds in ((1,), (2, 3), (4,))]
    painted = [future.result(WAIT) for future in futures]
    assert max(rows) > 1 and [len(one.pictures) for one in painted] == [1, 2, 1]
    alone = engine.submit(submission(seeds=(2, 3))).result(WAIT)
    assert (painted[1].pictures - alone.pictures).abs().max() < 1e-3
    good, bad = engine.submit(submission()), engine.submit(submission(seeds=(2,), on_step=spoil))
    with pytest.raises(NonFiniteOutput):
        bad.result(WAIT)
    assert isinstance(good.result(WAIT), Painted)


def test_what_waits_can_be_taken_back(engine) -> None:
    engine.max_rows = 2
    inside, go_on = threading.Event(), threading.Event()

    def hold(ticket: Ticket) -> None:
        inside.set()
        assert go_on.wait(WAIT)

    first = engine.submit(submission(num_inference_steps=1, on_step=hold))
    assert inside.wait(WAIT)
    second, third = engine.submit(submission(seeds=(2,))), engine.submit(submission(seeds=(3,)))
    assert second.cancel() and not first.cancel()
    go_on.set()
    assert isinstance(third.result(WAIT), Painted) and isinstance(first.result(WAIT), Painted)
    with pytest.raises(CancelledError):
        second.result(0)


def test_nobody_is_overtaken_for_ever(engine) -> None:
    """One of another size waits while small ones fit beside the first: a few may pass, then it is its turn."""
    engine.max_rows = 4
    ended: list[str] = []

    def follow(name: str):
        return lambda future: ended.append(name)

    engine.submit(submission(num_inference_steps=30)).add_done_callback(follow("first"))
    engine.submit(submission(height=32, width=48)).add_done_callback(follow("large"))
    small = [engine.submit(submission(seeds=(seed,), num_inference_steps=1)) for seed in range(20)]
    for future in small:
        future.add_done_callback(follow("small"))
        future.result(WAIT)
    assert ended.index("large") < len(ended) - 8 and ended.index("large") > ended.index("first")


def test_what_is_the_same_is_computed_once(engine) -> None:
    encodes, texts = [], []
    engine.pipe.vae.encoder.register_forward_hook(lambda *_: encodes.append(1))
    engine.pipe.text_encoder.register_forward_hook(lambda *_: texts.append(1))
    for prompt in ("a red cat", "a red cat", "a dog"):
        engine.submit(submission(seeds=(1, 2, 3), prompt=prompt)).result(WAIT)
    assert len(encodes) == 1, "nine pictures, all the same"
    assert len(texts) == 3, "two prompts and the empty one"


def test_a_lost_device_ends_everything_that_waits(engine, monkeypatch) -> None:
    def lost(*_, **__):
        raise DeviceLost("the weights drifted")

    monkeypatch.setattr(engine.pipe.unet, "forward", lost)
    futures = [engine.submit(submission(seeds=(seed,), num_inference_steps=3)) for seed in range(3)]
    for future in futures:
        with pytest.raises((DeviceLost, RuntimeError)):
            future.result(WAIT)
    assert engine.broken == "the weights drifted"
    with pytest.raises(RuntimeError, match="drifted"):
        engine.submit(submission())


def test_closing_leaves_nobody_waiting() -> None:
    engine = InpaintEngine(tiny_checkpoints.load_ours("inpaint"), max_rows=2)
    futures = [engine.submit(submission(seeds=(seed,), num_inference_steps=50)) for seed in range(3)]
    engine.close()
    for future in futures:
        with pytest.raises(RuntimeError, match="closed"):
            future.result(WAIT)


def test_costs_are_measured_on_the_engine_itself(engine) -> None:
    before = {name: tensor.clone() for name, tensor in engine.pipe.unet.state_dict().items()}
    costs = engine.measure(64, 64, rows=(2, 4), sets=(1, 2), repeats=1)
    assert set(costs.step) == {2, 4} and engine.max_rows in (2, 4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.pipe.unet.state_dict().items())
    assert isinstance(engine.submit(submission()).result(WAIT), Painted)
