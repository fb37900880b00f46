"""Textual inversion: new words for the tokenizer, new rows for the text encoder's embedding matrix
(Gal et al., arXiv:2208.01618).

Two layouts are in use. diffusers': one tensor whose key is the word. AUTOMATIC1111's: `string_to_param` → `*` and a
`name`, in safetensors flattened to `string_to_param.*` (the word in the metadata's `name`) or to `emb_params`.
A tensor of n rows makes n tokens: ``word``, ``word_1`` … ``word_{n-1}``.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from tokenizers import Tokenizer

from worker.engine.errors import EmbeddingInvalid
from worker.engine.lora.header import refuse_pickle

DEFAULT_NAME = "learned_embeds.safetensors"

Source: TypeAlias = str | Path | bytes | Mapping[str, Any] | torch.Tensor


@dataclass(frozen=True, eq=False)
class Embedding:
    """`token` and its `vectors`, ``[n, D]``."""

    token: str
    vectors: torch.Tensor

    @property
    def tokens(self) -> list[str]:
        return [self.token, *(f"{self.token}_{i}" for i in range(1, len(self.vectors)))]


def read_embedding(source: str | Path | bytes) -> dict[str, Any]:
    """The tensors of a safetensors file, or of its bytes, by key; with the metadata's `name` where it has one.

    What is returned is a `Source` too. Raises UnsafeWeightsFormat for a pickle whatever it is called, EmbeddingInvalid
    for anything else unreadable.
    """
    if isinstance(source, bytes):
        where, data = "the embedding", source
    elif Path(source).is_file():
        where, data = str(source), Path(source).read_bytes()
    else:
        raise EmbeddingInvalid(f"{source} does not exist: give a file, or a folder that holds {DEFAULT_NAME}")
    if data[8:9] != b"{":
        refuse_pickle(data, where)
    try:
        state: dict[str, Any] = load_tensors(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError) as error:
        raise EmbeddingInvalid(f"{where} is no readable safetensors file: {error}") from error
    name = header.get("__metadata__", {}).get("name")
    return {**state, "name": name} if name else state


def locate(source: str | Path | bytes, subfolder: str | None, weight_name: str | None) -> Path | bytes:
    if isinstance(source, bytes):
        return source
    path = Path(source)
    if path.is_dir():
        return path / (subfolder or "") / (weight_name or DEFAULT_NAME)
    return path


def parse(state: Mapping[str, Any] | torch.Tensor, token: str | None) -> Embedding:
    """The word and its vectors; `token` takes precedence over the name inside.

    Raises EmbeddingInvalid when the layout is none of those known, or there is no word to give it.
    """
    if isinstance(state, torch.Tensor):
        name, vectors = None, state
    else:
        name, tensors = state.get("name"), {key: value for key, value in state.items() if key != "name"}
        if isinstance(state.get("string_to_param"), Mapping):
            vectors = state["string_to_param"].get("*")
        elif "string_to_param.*" in tensors:
            vectors = tensors["string_to_param.*"]
        elif len(tensors) == 1:
            key, vectors = next(iter(tensors.items()))
            name = name or key
        else:
            listed = ", ".join(sorted(map(str, tensors))[:5])
            raise EmbeddingInvalid(
                f"an embedding holds one tensor, or `string_to_param`; this one holds {len(tensors)}: {listed}"
            )
    token = token or name
    if not isinstance(token, str) or not token.strip():
        raise EmbeddingInvalid("the file gives its embedding no word: pass `token=`")
    if not isinstance(vectors, torch.Tensor) or vectors.ndim not in (1, 2) or not vectors.numel():
        raise EmbeddingInvalid(f"the embedding of {token!r} has to be a tensor (D) or (vectors, D)")
    return Embedding(token, vectors.reshape(-1, vectors.shape[-1]))


def check_fits(embeddings: Iterable[Embedding], tokenizer, text_encoder) -> None:
    """Raise EmbeddingInvalid for a word that exists already, a width that is not the encoder's, or NaN or Inf."""
    known = set(tokenizer.get_vocab())
    width = text_encoder.get_input_embeddings().weight.shape[1]
    for embedding in embeddings:
        taken = [token for token in (*embedding.tokens, f"{embedding.token}_1") if token in known]
        if taken:
            raise EmbeddingInvalid(f"{taken[0]!r} is in the vocabulary already: pass another `token=`, or unload it")
        if embedding.vectors.shape[1] != width:
            raise EmbeddingInvalid(
                f"{embedding.token!r} has vectors of {embedding.vectors.shape[1]} numbers, the text encoder {width}: "
                "it was made for another base"
            )
        if not torch.isfinite(embedding.vectors).all():
            raise EmbeddingInvalid(f"{embedding.token!r} holds NaN or Inf")
        known.update(embedding.tokens)


def set_rows(text_encoder, rows: torch.Tensor) -> None:
    layer = text_encoder.get_input_embeddings()
    layer.weight = torch.nn.Parameter(rows, requires_grad=layer.weight.requires_grad)
    layer.num_embeddings = text_encoder.config.vocab_size = len(rows)


def load(
    tokenizer,
    text_encoder,
    sources: Source | list[Source],
    tokens: str | list[str | None] | None = None,
    subfolder: str | None = None,
    weight_name: str | None = None,
) -> None:
    """Add every source's word to `tokenizer` and its rows to `text_encoder`; all are checked before one is added.

    One tensor of n rows with n tokens gives each token its row. Raises EmbeddingInvalid or UnsafeWeightsFormat.
    """
    sources = sources if isinstance(sources, list) else [sources]
    tokens = tokens if isinstance(tokens, list) else [tokens]
    tokens = tokens if any(tokens) else [None] * len(sources)
    if len(tokens) > 1 and len(sources) == 1 and isinstance(sources[0], torch.Tensor):
        sources = list(sources[0])
    if len(sources) != len(tokens):
        raise EmbeddingInvalid(f"{len(sources)} embeddings and {len(tokens)} tokens were given: pass one token each")
    states = [
        source if isinstance(source, torch.Tensor | Mapping) else read_embedding(locate(source, subfolder, weight_name))
        for source in sources
    ]
    embeddings = [parse(state, token) for state, token in zip(states, tokens, strict=True)]
    check_fits(embeddings, tokenizer, text_encoder)
    weight = text_encoder.get_input_embeddings().weight
    new = torch.cat([embedding.vectors for embedding in embeddings]).to(weight)
    set_rows(text_encoder, torch.cat([weight.data[: len(tokenizer)], new]))
    for embedding in embeddings:
        for token in embedding.tokens:  # one by one: a list would be sorted into the vocabulary by length
            tokenizer.add_tokens(token)


def unload(tokenizer, text_encoder, tokens: str | list[str] | None = None) -> None:
    """Remove words (with all their vectors; default: every added word) from tokenizer and text encoder.

    Raises EmbeddingInvalid when none of `tokens` was added.
    """
    added = {token.content: i for i, token in sorted(tokenizer.added_tokens_decoder.items()) if not token.special}
    tokens = list(added) if tokens is None else [tokens] if isinstance(tokens, str) else tokens
    removed = {name for name in added for token in tokens if name == token or _is_vector_of(name, token)}
    if tokens and not removed:
        raise EmbeddingInvalid(f"none of {', '.join(map(repr, tokens))} was added to the vocabulary")
    weight = text_encoder.get_input_embeddings().weight.data
    dropped = {added[name] for name in removed}
    keep = [i for i in range(len(weight)) if i not in dropped]
    set_rows(text_encoder, weight[keep])
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = [entry for entry in state["added_tokens"] if entry["content"] not in removed]
    for entry in state["added_tokens"]:
        entry["id"] -= sum(i < entry["id"] for i in dropped)
    # A tokenizer can add tokens but not drop them, so its backend is read back without them.
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))


def _is_vector_of(name: str, token: str) -> bool:
    return name.startswith(f"{token}_") and name.removeprefix(f"{token}_").isdecimal()
