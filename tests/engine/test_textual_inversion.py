"""New words for the text encoder: both layouts, several vectors, all or nothing, and forgotten without a trace."""

from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engine import tiny_checkpoints
from tests.engine.comparison import assert_parity
from worker.engine.errors import EmbeddingInvalid, InvalidParameter, UnsafeWeightsFormat
from worker.engine.prompts import spell_out

WIDTH = tiny_checkpoints.TEXT["hidden_size"]


def vectors(count: int, seed: int = 0, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def with_own_words(pipe: Any) -> Any:
    words = {"text_encoder": deepcopy(pipe.text_encoder), "tokenizer": tiny_checkpoints.tokenizer()}
    copy = type(pipe)(**{**pipe.components, **words})
    copy.set_progress_bar_config(disable=True)
    return copy


@pytest.fixture
def pipes() -> Iterator[tuple[Any, Any]]:
    """Ours and theirs with a tokenizer and a text encoder of their own, checked to be as before when ours forgets."""
    ours, theirs = (with_own_words(make("inpaint")) for make in (tiny_checkpoints.ours, tiny_checkpoints.oracle))
    rows = ours.text_encoder.get_input_embeddings().weight.clone()
    ids = ours.tokenizer("a <cat-toy> photo_1 of <s2>")["input_ids"]
    yield ours, theirs
    if len(ours.tokenizer) > len(rows):
        ours.unload_textual_inversion()
    assert torch.equal(ours.text_encoder.get_input_embeddings().weight, rows)
    assert ours.text_encoder.config.vocab_size == len(rows)
    assert ours.tokenizer("a <cat-toy> photo_1 of <s2>")["input_ids"] == ids


# Everything diffusers takes: (sources, token argument, prompt that uses them).
FORMS: dict[str, tuple[Any, Any, str]] = {
    "diffusers, one vector": ({"<cat-toy>": vectors(1)[0]}, None, "a <cat-toy> backpack"),
    "diffusers, one row": ({"<cat-toy>": vectors(1)}, None, "a <cat-toy> backpack"),
    "diffusers, several vectors": ({"<cat-toy>": vectors(3)}, None, "a <cat-toy> backpack and a <cat-toy>"),
    "another word": ({"<cat-toy>": vectors(2)}, "<dog>", "a <dog> on a <cat-toy>"),
    "A1111": ({"string_to_param": {"*": vectors(4)}, "name": "moody"}, None, "a moody picture"),
    "A1111, another word": ({"string_to_param": {"*": vectors(4)}, "name": "moody"}, "<m>", "a moody <m> picture"),
    "A1111 in safetensors": ({"emb_params": vectors(2)}, "charturner", "charturner, several views"),
    "tensor": (vectors(1), "<s0>", "a <s0>"),
    "tensor for several words": (vectors(2), ["<s0>", "<s1>"], "a <s0> and a <s1>"),
    "list": ([{"<a1>": vectors(1)}, {"<b1>": vectors(2, 1)}], None, "a <b1> beside <a1>"),
    "list with words": ([vectors(1), vectors(2, 1)], ["<x>", "<y>"], "<y> <x> <y>"),
    "in the negative prompt": ({"<bad>": vectors(5)}, None, "a cat"),
}


@pytest.mark.parametrize(("source", "token", "prompt"), FORMS.values(), ids=FORMS.keys())
def test_forms(pipes: tuple[Any, Any], source: Any, token: Any, prompt: str) -> None:
    for pipe in pipes:
        pipe.load_textual_inversion(source, token=token)
    assert_parity("inpaint", *pipes, prompt=prompt, negative_prompt="a <bad> picture", num_inference_steps=2)


@pytest.mark.parametrize("where", ["file", "folder", "named", "subfolder"])
def test_files(pipes: tuple[Any, Any], where: str, tmp_path: Path) -> None:
    folder = tmp_path / "sub" if where == "subfolder" else tmp_path
    folder.mkdir(exist_ok=True)
    name = "cat.safetensors" if where == "named" else "learned_embeds.safetensors"
    save_file({"<cat-toy>": vectors(2)}, folder / name)
    options = {"named": {"weight_name": name}, "subfolder": {"subfolder": "sub"}}.get(where, {})
    for pipe in pipes:
        pipe.load_textual_inversion(str(tmp_path / name if where == "file" else tmp_path), **options)
    assert_parity("inpaint", *pipes, prompt="a <cat-toy>", num_inference_steps=2)


def test_a_flattened_a1111_file_names_its_word_in_the_metadata(pipes: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "moody.safetensors"
    save_file({"string_to_param.*": vectors(2), "step": torch.tensor([5])}, path, metadata={"name": "moody"})
    pipes[0].load_textual_inversion(path.read_bytes())
    pipes[1].load_textual_inversion({"string_to_param": {"*": vectors(2)}, "name": "moody"})
    assert_parity("inpaint", *pipes, prompt="a moody cat", num_inference_steps=2)


def test_some_words_are_forgotten(pipes: tuple[Any, Any]) -> None:
    ours, theirs = pipes
    for pipe in pipes:
        pipe.load_textual_inversion({"<cat-toy>": vectors(2)})
        pipe.load_textual_inversion({"<s1>": vectors(1, 1)})
        pipe.load_textual_inversion({"<s2>": vectors(2, 2)})
    ours.unload_textual_inversion("<cat-toy>")
    theirs.unload_textual_inversion(["<cat-toy>", "<cat-toy>_1"])
    assert ours.tokenizer.added_tokens_encoder == theirs.tokenizer.added_tokens_encoder
    assert_parity("inpaint", *pipes, prompt="a <cat-toy> with <s2> and <s1>", num_inference_steps=2)
    ours.unload_textual_inversion(["<s1>", "<s2>"])
    with pytest.raises(EmbeddingInvalid, match="<s1>"):
        ours.unload_textual_inversion("<s1>")


def test_words_and_loras_live_together(pipes: tuple[Any, Any]) -> None:
    for pipe in pipes:
        pipe.load_lora_weights(tiny_checkpoints.lora("inpaint"))
        pipe.load_textual_inversion({"<cat-toy>": vectors(3)})
    assert_parity("inpaint", *pipes, prompt="a <cat-toy>", num_inference_steps=2)
    for pipe in pipes:
        pipe.unload_lora_weights()


def test_a_saved_pipeline_keeps_its_words(pipes: tuple[Any, Any], tmp_path: Path) -> None:
    ours = pipes[0]
    ours.load_textual_inversion({"<cat-toy>": vectors(3)})
    ours.save_pretrained(tmp_path)
    again = type(ours).from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert_parity("inpaint", again, ours, prompt="a <cat-toy>", num_inference_steps=1)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "width of another base": ({"<x>": vectors(1, width=WIDTH + 1)}, None, "another base"),
    "two tensors": ({"clip_l": vectors(1), "clip_g": vectors(1)}, None, "clip_g"),
    "no word": (vectors(1), None, "token="),
    "a known word": ({"a</w>": vectors(1)}, None, "vocabulary"),
    "twice the same": ([{"<x>": vectors(1)}, {"<x>": vectors(1)}], None, "vocabulary"),
    "too few words": ([vectors(1), vectors(1)], ["<x>"], "1 tokens"),
    "three words for two rows": (vectors(2), ["<x>", "<y>", "<z>"], "3 tokens"),
    "nothing": ({}, None, "0"),
    "not a number": ({"<x>": torch.full((1, WIDTH), float("nan"))}, None, "NaN"),
    "no file": ("nowhere.safetensors", None, "does not exist"),
}


@pytest.mark.parametrize(("source", "token", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(pipes: tuple[Any, Any], source: Any, token: Any, message: str) -> None:
    """Nothing is added, not even what came before the culprit."""
    with pytest.raises(EmbeddingInvalid, match=message):
        pipes[0].load_textual_inversion(source, token=token)
    sources, tokens = (value if isinstance(value, list) else [value] for value in (source, token))
    with pytest.raises(EmbeddingInvalid):
        pipes[0].load_textual_inversion([{"<good>": vectors(1)}, *sources], token=[None, *tokens])
    assert len(pipes[0].tokenizer) == 514


@pytest.mark.parametrize("name", ["embedding.pt", "embedding.bin", "embedding.safetensors"])
def test_pickles_are_refused_whatever_they_are_called(pipes: tuple[Any, Any], name: str, tmp_path: Path) -> None:
    torch.save({"<x>": vectors(1)}, tmp_path / name)
    with pytest.raises(UnsafeWeightsFormat, match="farm-worker convert"):
        pipes[0].load_textual_inversion(tmp_path / name)


def test_broken_files_and_options(pipes: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(EmbeddingInvalid, match="safetensors"):
        pipes[0].load_textual_inversion(tmp_path / "short.safetensors")
    with pytest.raises(InvalidParameter, match="wieght_name"):
        pipes[0].load_textual_inversion(tmp_path, wieght_name="x")
    with pytest.raises(UnsafeWeightsFormat):
        pipes[0].load_textual_inversion(tmp_path, use_safetensors=False)


def test_a_word_that_begins_like_another_is_not_taken_apart(pipes: tuple[Any, Any]) -> None:
    ours = pipes[0]
    ours.load_textual_inversion([{"<s>": vectors(2)}, {"<s>x": vectors(3)}])
    assert spell_out("<s> <s>x", ours.tokenizer) == "<s> <s>_1 <s>x <s>x_1 <s>x_2"
