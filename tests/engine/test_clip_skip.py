"""`clip_skip` against CLIP's own hidden states, since diffusers fails on it with transformers 5."""

import pytest
import torch

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_same_latents, run
from worker.engine.prompts import truncated_text

LAYERS = tiny_checkpoints.TEXT["num_hidden_layers"]
TEXTS = ["a red cat", "eine Straße"]


def states(pipe: object, prompt: str) -> tuple[torch.Tensor, ...]:
    """The output of every layer, [embeddings, layer 1, …, layer n], each [1, 77, D], computed layer by layer."""
    ids = pipe.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    encoder, seen = pipe.text_encoder, []
    hooks = [
        layer.register_forward_hook(lambda module, args, output: seen.append(output))
        for layer in encoder.encoder.layers
    ]
    with torch.no_grad():
        encoder(ids)
    for hook in hooks:
        hook.remove()
    return tuple(output[0] if isinstance(output, tuple) else output for output in seen)


@pytest.mark.parametrize("clip_skip", range(LAYERS))
@pytest.mark.parametrize("prompt", TEXTS)
def test_it_is_the_layer_counted_from_the_end(clip_skip: int, prompt: str) -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    with torch.no_grad():
        expected = pipe.text_encoder.final_layer_norm(states(pipe, prompt)[LAYERS - 1 - clip_skip])
        positive, negative = pipe.encode_prompt(prompt, "cpu", 1, True, "ugly", clip_skip=clip_skip)
        _, plain = pipe.encode_prompt(prompt, "cpu", 1, True, "ugly")
    assert torch.equal(positive, expected)
    assert torch.equal(negative, plain), "the negative prompt skips nothing, as in diffusers"


def test_all_layers_skipped_are_the_embeddings() -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    ids = pipe.tokenizer("a", padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.no_grad():
        positive, _ = pipe.encode_prompt("a", "cpu", 1, False, clip_skip=LAYERS)
        assert torch.equal(positive, pipe.text_encoder.final_layer_norm(pipe.text_encoder.embeddings(ids)))


@pytest.mark.parametrize("clip_skip", [0, 1, 3])
def test_the_call_equals_diffusers_given_those_embeddings(clip_skip: int) -> None:
    ours, theirs = tiny_checkpoints.ours("inpaint"), tiny_checkpoints.oracle("inpaint")
    made = run(ours, {"clip_skip": clip_skip, "output_type": "latent"})
    assert ours.clip_skip == clip_skip
    with torch.no_grad():
        embeds = ours.text_encoder.final_layer_norm(states(ours, "a red cat")[LAYERS - 1 - clip_skip])
    arguments = {"prompt": None, "prompt_embeds": embeds, "negative_prompt": "", "output_type": "latent"}
    assert_same_latents(made, run(theirs, arguments))


@pytest.mark.parametrize("prompt", [["a", "a longer text"], "a", "long " * 40])
@pytest.mark.parametrize("guided", [True, False])
def test_encode_prompt_equals_diffusers(prompt: str | list[str], guided: bool) -> None:
    negative = ["x"] * len(prompt) if isinstance(prompt, list) else "x"
    with torch.no_grad():
        ours = tiny_checkpoints.ours("inpaint").encode_prompt(prompt, "cpu", 2, guided, negative)
        theirs = tiny_checkpoints.oracle("inpaint").encode_prompt(prompt, "cpu", 2, guided, negative)
    assert_same_latents(ours[0], theirs[0], 1e-6)
    if guided:
        assert_same_latents(ours[1], theirs[1], 1e-6)
    else:
        assert ours[1] is theirs[1] is None


def test_what_is_cut_off_is_known(caplog: pytest.LogCaptureFixture) -> None:
    pipe = tiny_checkpoints.ours("inpaint")
    assert truncated_text(pipe.tokenizer, "x" * 75, 77) == ""
    assert truncated_text(pipe.tokenizer, "x" * 75 + " cat", 77) == "cat"
    pipe.encode_prompt("x" * 75 + " cat", "cpu", 1, False)
    assert "cat" in caplog.text
