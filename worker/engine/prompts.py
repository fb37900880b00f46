"""Prompts to text embeddings: CLIP's tokens, CLIP's hidden states (Radford et al., arXiv:2103.00020).

A textual inversion of several vectors is one word to the writer and several tokens to CLIP: `spell_out` writes them
all before the text is tokenized.
"""

import logging
import re
from collections.abc import Mapping

import torch

from worker.engine.errors import InvalidParameter
from worker.engine.latents import repeat_rows

logger = logging.getLogger(__name__)


def spell_out(prompt: str, tokenizer) -> str:
    """`prompt` with every multi-vector token ``t`` written as ``t t_1 t_2 …``, as many as the tokenizer knows."""
    added = tokenizer.added_tokens_encoder
    found = {token for token in tokenizer.tokenize(prompt) if token in added and f"{token}_1" in added}
    if not found:
        return prompt
    # Longest first, so that a token whose name begins with another's is not taken apart.
    pattern = "|".join(re.escape(token) for token in sorted(found | added.keys(), key=len, reverse=True))

    def vectors(match: re.Match[str]) -> str:
        token, words = match.group(), [match.group()]
        while token in found and f"{token}_{len(words)}" in added:
            words.append(f"{token}_{len(words)}")
        return " ".join(words)

    return re.sub(pattern, vectors, prompt)


def max_tokens(tokenizer, text_encoder) -> int:
    """Tokens CLIP can take, begin and end marks included.

    A tokenizer saved by transformers 5 may not say; then the text encoder's positions are the limit.
    """
    return min(tokenizer.model_max_length, text_encoder.config.max_position_embeddings)


def truncated_text(tokenizer, prompt: str, limit: int) -> str:
    """The end of `prompt` that does not fit in `limit` tokens, as the tokenizer spells it; empty if all fits."""
    ids = tokenizer(prompt, padding=False, truncation=False)["input_ids"]
    return tokenizer.decode(ids[limit - 1 : -1]) if len(ids) > limit else ""


def cut_off(tokenizer, prompt: str, limit: int, words: Mapping[str, int] | None = None) -> int:
    """How many tokens of `prompt` do not fit in `limit`, begin and end marks included; 0 if all fit.

    `words`: those that the tokenizer does not know yet and how many tokens each will be, as textual inversions are.
    """
    known = words or {}
    more = 0
    for word in sorted(known, key=len, reverse=True):
        parts = prompt.split(word)
        more += known[word] * (len(parts) - 1)
        prompt = " ".join(parts)
    return max(0, len(tokenizer(prompt, padding=False, truncation=False)["input_ids"]) + more - limit)


def encode_texts(
    tokenizer, text_encoder, texts: list[str], length: int | None = None, clip_skip: int | None = None
) -> torch.Tensor:
    """Embeddings ``[len(texts), length, D]`` in the text encoder's dtype and on its device.

    Texts are padded or cut to `length` tokens (default: all CLIP takes). `clip_skip` = k takes the hidden state k
    layers before the last, through the final layer norm, so that 0 and None mean the same.
    """
    limit = max_tokens(tokenizer, text_encoder)
    texts = [spell_out(text, tokenizer) for text in texts]
    for text in texts:
        if lost := truncated_text(tokenizer, text, limit):
            logger.warning("CLIP takes %d tokens; cut off: %s", limit, lost)
    inputs = tokenizer(texts, padding="max_length", max_length=length or limit, truncation=True, return_tensors="pt")
    device, mask = text_encoder.device, None
    if getattr(text_encoder.config, "use_attention_mask", False):
        mask = inputs.attention_mask.to(device)
    ids = inputs.input_ids.to(device)
    if not clip_skip:
        return text_encoder(ids, attention_mask=mask).last_hidden_state
    states = text_encoder(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    if clip_skip >= len(states):
        raise InvalidParameter("clip_skip", f"has to be between 0 and {len(states) - 1}, not {clip_skip}")
    # transformers 5 has no `text_model` between the encoder and its norm; older releases do.
    return getattr(text_encoder, "text_model", text_encoder).final_layer_norm(states[-(clip_skip + 1)])


def for_each_image(embeds: torch.Tensor, num_images_per_prompt: int) -> torch.Tensor:
    """``[B, L, D]`` to ``[B·n, L, D]``: each prompt's rows side by side."""
    return embeds.repeat_interleave(num_images_per_prompt, dim=0)


def encode_prompt(
    tokenizer,
    text_encoder,
    prompt: str | list[str] | None,
    negative_prompt: str | list[str] | None,
    prompt_embeds: torch.Tensor | None,
    negative_prompt_embeds: torch.Tensor | None,
    *,
    num_images_per_prompt: int,
    guided: bool,
    clip_skip: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(positive, negative) embeddings, ``[B·n, L, D]`` each in `dtype` on `device`; negative None without guidance.

    What is given as embeddings is used as it is; a missing negative prompt is the empty text. `clip_skip` is the
    positive prompt's alone.
    """
    if prompt_embeds is None:
        texts = [prompt] if isinstance(prompt, str) else prompt
        prompt_embeds = encode_texts(tokenizer, text_encoder, texts, clip_skip=clip_skip)
    batch, length, _ = prompt_embeds.shape
    positive = for_each_image(prompt_embeds.to(device, dtype), num_images_per_prompt)
    if not guided:
        return positive, negative_prompt_embeds
    if negative_prompt_embeds is None:
        if text_encoder is None:
            raise InvalidParameter("negative_prompt_embeds", "has to be given: this pipeline has no text encoder")
        texts = [negative_prompt or ""] if isinstance(negative_prompt or "", str) else negative_prompt
        negative_prompt_embeds = encode_texts(tokenizer, text_encoder, texts, length=length)
    negative = repeat_rows(negative_prompt_embeds.to(device, dtype), batch, "negative_prompt")
    if negative.shape[1] != length:
        raise InvalidParameter("negative_prompt_embeds", f"must have as many tokens as `prompt_embeds`, {length}")
    return positive, for_each_image(negative, num_images_per_prompt)
