"""What is said of prompts that are too long: as many tokens as the pipeline itself will cut off."""

import pytest
import torch

from farm.schemas import EmbeddingRef, InpaintJob
from tests.engine import tiny_checkpoints
from worker.assets import Asset
from worker.engine.prompts import spell_out
from worker.engine.text import load_tokenizer
from worker.prompt_length import PromptLength

FOLDER = tiny_checkpoints.folder("inpaint")
WORD = "<brand>"
BRAND = (EmbeddingRef(path="s3://photos/brand.safetensors", token=WORD), Asset("0" * 64, torch.ones(5, 32), 1, "ram"))


@pytest.fixture(scope="module")
def length():
    return PromptLength(FOLDER)


def job(**fields):
    return InpaintJob(image="s3://photos/a.png", **fields)


def test_what_fits_is_not_spoken_of(length):
    assert length.warnings(job(prompt="a cup", negative_prompt="blur")) == ()


def test_each_prompt_is_spoken_of_by_its_name(length):
    told = length.warnings(job(prompt="table " * 80, negative_prompt="chair " * 90))
    assert [line.split(":")[0] for line in told] == ["prompt", "negative_prompt"]
    assert "77" in told[0]


def test_a_negative_prompt_that_is_not_used_is_not_judged(length):
    assert length.warnings(job(negative_prompt="chair " * 90, guidance_scale=1.0)) == ()


@pytest.mark.parametrize(
    "prompt", [f"{WORD} " * 40, f"a {WORD}, {WORD}x " * 20, f"{WORD}{WORD}" * 9, "no such word " * 70]
)
def test_a_word_of_an_embedding_counts_as_its_vectors(length, prompt):
    tokenizer = load_tokenizer(FOLDER / "tokenizer")
    tokenizer.add_tokens([WORD, *(f"{WORD}_{n}" for n in range(1, 5))])
    cut = len(tokenizer(spell_out(prompt, tokenizer))["input_ids"]) - 77
    assert cut > 0
    (line,) = length.warnings(job(prompt=prompt), [BRAND])
    assert line.startswith(f"prompt: {cut} of its tokens")
