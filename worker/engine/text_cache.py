"""Text embeddings that were made before: a catalogue asks for the same few texts again and again."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

from worker.engine import prompts
from worker.engine.call import Call

Texts = tuple[torch.Tensor, torch.Tensor | None]


class TextCache:
    """The last `entries` texts, one ``[1, L, D]`` each, with everything that their embeddings depend on as the key."""

    def __init__(self, tokenizer: Any, text_encoder: Any, *, entries: int = 512):
        self._tokenizer, self._text_encoder, self._entries = tokenizer, text_encoder, entries
        self._kept: OrderedDict[Hashable, torch.Tensor] = OrderedDict()

    def texts(self, call: Call, guided: bool, weights: Hashable, encoding: Callable[[], Any]) -> Texts | None:
        """(positive, negative) of a call with one prompt, ``[N, L, D]`` each; None for a call that brings embeddings.

        `weights` names the text encoder's LoRAs and added words. `encoding` gives the context in which they act; it
        is entered only for a text that is not known.
        """
        if not isinstance(call.prompt, str):
            return None
        wanted = [(call.prompt, call.clip_skip)] + [(call.negative_prompt or "", None)] * guided
        keys = [(text, clip_skip or 0, weights) for text, clip_skip in wanted]
        missing = [key for key in dict.fromkeys(keys) if key not in self._kept]
        if missing:
            with encoding():
                for key in missing:
                    text, clip_skip, _ = key
                    self._kept[key] = prompts.encode_texts(
                        self._tokenizer, self._text_encoder, [text], clip_skip=clip_skip
                    )
        for key in keys:
            self._kept.move_to_end(key)
        made = [prompts.for_each_image(self._kept[key], call.num_images_per_prompt) for key in keys]
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        return made[0], made[1] if guided else None
