"""Pictures that are prompts, prepared once a call: the UNet's output is that of the call with their tokens."""

import threading
from collections import Counter
from dataclasses import replace

import pytest
import torch

from tests.engine import ip_adapter_files as files
from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_same_latents, relative_error
from tests.engine.conftest import VISION
from tests.engine.pictures import picture
from tests.engine.test_engine import MIXING, TURNS, WAIT, submission
from tests.engine.test_ip_adapter import made
from worker.engine import InpaintEngine, StableDiffusionInpaintPipeline
from worker.engine.conditions import ImageKeysValues
from worker.engine.denoise import image_tokens
from worker.engine.errors import InvalidParameter
from worker.engine.lora import Adapter, LoraMerger, read_lora
from worker.engine.submission import GaveWay, ImagePrompt

MASKS = torch.arange(2 * 2 * 64 * 64).reshape(2, 1, 2, 64, 64) % 7 / 6  # for each of two adapters


@torch.no_grad()
@pytest.mark.parametrize(
    ("kinds", "scale"),
    [
        (("plain",), 1.0),
        (("full",), 0.4),
        (("plus", "plain", "plus"), [0.8, -1, 0.3]),
        (("plain", "plus"), [0.0, 0.5]),
        (("plain",), {"up": {"block_0": [0.0, 1.0]}}),
    ],
    ids=str,
)
def test_equals_the_call_with_tokens_to_the_bit(kinds, scale):
    _, ours, given, embeds = made(*kinds)
    tokens = ours.project_image_embeds(embeds)
    prepared = ours.image_keys_values(tokens)
    ours.set_ip_adapter_scale(scale)  # which may change at every step
    expected = ours(**given, ip_hidden_states=tokens)
    assert torch.equal(ours(**given, ip_hidden_states=prepared), expected)
    assert relative_error(expected, ours(**given)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("masks", [list(MASKS), [MASKS[0], None]], ids=["both", "one"])
@pytest.mark.parametrize("scale", [[0.8, 0.6], [[0.3, 0.0], 0.5]], ids=str)
def test_pictures_of_one_adapter_are_told_apart_by_masks(masks, scale):
    _, ours, given, embeds = made("plain", "plus")
    tokens = ours.project_image_embeds(embeds)
    prepared = ours.image_keys_values(tokens)
    ours.set_ip_adapter_scale(scale)
    expected = ours(**given, ip_hidden_states=tokens, ip_adapter_masks=masks)
    assert relative_error(ours(**given, ip_hidden_states=prepared, ip_adapter_masks=masks), expected) <= 1e-6
    ours.set_ip_adapter_scale([0.8, 0.6])
    assert relative_error(ours(**given, ip_hidden_states=prepared), expected) > 1e-3


@torch.no_grad()
def test_layers_that_look_at_no_picture_keep_their_places():
    """With `only_cross_attention` every other layer that looks at the text has no part in an adapter."""
    _, ours, given, embeds = made("plain", only_cross_attention=True)
    tokens = ours.project_image_embeds(embeds)
    (prepared,) = ours.image_keys_values(tokens)
    assert 0 in prepared.widths
    assert torch.equal(ours(**given, ip_hidden_states=[prepared]), ours(**given, ip_hidden_states=tokens))


@torch.no_grad()
def test_no_layer_of_a_picture_is_called_again():
    _, ours, given, embeds = made("plain", "plus")
    tokens = ours.project_image_embeds(embeds)
    prepared = ours.image_keys_values(tokens)
    called = calls_of(ours)
    ours(**given, ip_hidden_states=prepared)
    assert not called
    ours(**given, ip_hidden_states=tokens)
    assert len(called) == 2 * 2 * len(ours.ip_adapters[0].layers) and set(called.values()) == {1}


@torch.no_grad()
def test_rows_of_many_requests_are_put_together():
    _, ours, given, embeds = made("plain", "plus")
    tokens = ours.project_image_embeds(embeds)
    prepared = ours.image_keys_values(tokens)
    crossed = [ImageKeysValues.cat([each.rows(slice(1, 2)), each.rows(slice(0, 1))]) for each in prepared]
    expected = ours(**given, ip_hidden_states=[each.flip(0) for each in tokens])
    assert relative_error(ours(**given, ip_hidden_states=crossed), expected) <= 1e-6
    assert relative_error(ours(**given, ip_hidden_states=prepared), expected) > 1e-3


@torch.no_grad()
def test_what_does_not_fit_is_refused():
    _, ours, given, embeds = made("plain")
    tokens = ours.project_image_embeds(embeds)
    prepared = ours.image_keys_values(tokens)
    together = ours.image_keys_values([tokens[0].flatten(1, 2)])
    assert torch.equal(ours(**given, ip_hidden_states=together), ours(**given, ip_hidden_states=prepared))
    with pytest.raises(InvalidParameter, match="2 entries and there are 1"):
        ours.image_keys_values([*tokens, *tokens])
    with pytest.raises(InvalidParameter, match="`ip_hidden_states` has 1 rows for a batch of 2"):
        ours(**given, ip_hidden_states=[prepared[0].rows(slice(0, 1))])
    for each, masks in ((prepared, torch.ones(1, 3, 8, 8)), (together, torch.ones(1, 2, 8, 8))):
        with pytest.raises(InvalidParameter, match="ip_adapter_masks"):
            ours(**given, ip_hidden_states=each, ip_adapter_masks=[masks])
    with pytest.raises(InvalidParameter, match="as many pictures"):
        ImageKeysValues.cat([*prepared, *together])


def calls_of(unet) -> Counter:
    """How often each layer that makes keys or values of a picture is called from now on."""
    called = Counter()
    for name, layer in unet.ip_adapters.named_modules():
        if name.endswith(("to_k_ip", "to_v_ip")):
            layer.register_forward_hook(lambda module, args, out, name=name: called.update([name]))
    return called


# ---- in the engine ----


@pytest.fixture(scope="module")
def folder(tiny_checkpoint):
    return tiny_checkpoint(image_encoder=True)


@pytest.fixture
def engine(folder):
    made = InpaintEngine(StableDiffusionInpaintPipeline.from_pretrained(folder))
    yield made
    made.close()


@pytest.fixture(scope="module")
def each_step(folder):
    """The pipeline's own call, which makes them at every step: latents for a submission."""
    pipe = StableDiffusionInpaintPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    merger = LoraMerger(pipe.unet, pipe.text_encoder)

    def paint(one):
        pipe.load_ip_adapter(one.image_prompt.groups, image_encoder_folder=None)
        pipe.set_ip_adapter_scale(one.image_prompt.scale)
        merger.set_adapters(one.loras)
        try:
            return pipe(**one.arguments, ip_adapter_image=one.image_prompt.picture, output_type="latent").images
        finally:
            merger.restore()
            pipe.unload_ip_adapter()

    return paint


def looking(engine, *, seen=5, scale=0.8, loras=(), **changes):
    """A submission that looks at picture number `seen`."""
    torch.manual_seed(0)
    widths = [layer.to_k.out_features for name, layer in engine.pipe.unet.attention_layers().items() if "attn2" in name]
    groups = files.groups(files.plain(VISION["projection_dim"]), widths)
    weights = [read_lora(tiny_checkpoints.lora("inpaint", seed=seed), engine.merger.table) for seed in loras]
    prompt = ImagePrompt(groups, picture(seed=seen), scale, "0" * 64)
    return replace(submission(**changes), image_prompt=prompt, loras=tuple(Adapter(one, 0.7, 0.7) for one in weights))


@pytest.mark.parametrize("scale", [0.8, 0.0])
def test_a_call_paints_the_bits_it_would_with_tokens_at_every_step(engine, monkeypatch, scale):
    prepared = engine.submit(looking(engine, scale=scale)).result(WAIT).request.latents
    conditions = engine._conditions

    def with_tokens(tickets):
        times, texts, _ = conditions(tickets)
        return times, texts, image_tokens(tickets[0].request)

    monkeypatch.setattr(engine, "_conditions", with_tokens)
    called = calls_of(engine.pipe.unet)
    assert torch.equal(engine.submit(looking(engine, scale=scale)).result(WAIT).request.latents, prepared)
    assert set(called.values()) == {1 + 5 if scale else 1}, "beforehand as always, and in five steps"


@pytest.mark.parametrize("costs", [None, TURNS, MIXING], ids=["unmeasured", "in turns", "mixed"])
def test_once_a_call_however_many_steps_and_whatever_beside(engine, each_step, costs):
    engine.submit(looking(engine, num_inference_steps=1)).result(WAIT)  # after which the adapter stays
    called = calls_of(engine.pipe.unet)
    if costs:
        engine.use(costs, 64, 64)
    engine.max_rows = 8  # what more there is joins later
    all_are_in = threading.Event()
    calls = [
        {"seeds": (1,), "loras": (0,), "give_way": lambda ticket: not all_are_in.wait(WAIT)},
        {"seeds": (2,), "loras": (1,), "seen": 6, "num_inference_steps": 7},
        {"seeds": (3, 4), "seen": 7},
        {"seeds": (5,), "loras": (0, 1), "guidance_scale": 1.0, "num_inference_steps": 3},
    ]
    futures = [engine.submit(looking(engine, **call)) for call in calls]
    all_are_in.set()
    painted = [future.result(WAIT) for future in futures]
    assert called and set(called.values()) == {len(calls)}
    for call, one in zip(calls, painted, strict=True):
        assert_same_latents(one.request.latents, each_step(looking(engine, **call)), 1e-4)
    if costs is MIXING:
        assert any("mixed" in one.lora_mode for one in painted)


def test_what_loads_by_half_is_loaded_anew_for_the_next_call_and_not_looked_at_by_others(engine, monkeypatch):
    plain = engine.submit(submission()).result(WAIT).request.latents
    with monkeypatch.context() as patch:
        patch.setattr(engine.pipe, "set_ip_adapter_scale", lambda scale: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.submit(looking(engine, scale=0.5)).result(WAIT)
    half = engine.submit(looking(engine, scale=0.5)).result(WAIT).request.latents
    assert torch.equal(engine.submit(submission()).result(WAIT).request.latents, plain)
    assert torch.equal(engine.submit(looking(engine, scale=0.5)).result(WAIT).request.latents, half)
    assert not torch.equal(engine.submit(looking(engine, scale=1.0)).result(WAIT).request.latents, half)


def test_a_call_that_gives_way_goes_on_to_the_same_bits(engine):
    whole = engine.submit(looking(engine)).result(WAIT).request.latents
    stop = looking(engine, give_way=lambda ticket: ticket.request is not None and ticket.request.step_index == 2)
    with pytest.raises(GaveWay) as caught:
        engine.submit(stop).result(WAIT)
    resumed = engine.submit(looking(engine, resume=caught.value.request)).result(WAIT)
    assert torch.equal(resumed.request.latents, whole)
