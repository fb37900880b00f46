"""What of a job's prompts CLIP does not read. The picture does not show it, so the job's result says it."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from pathlib import Path

from farm.schemas import EmbeddingRef, InpaintJob
from worker.assets import Asset
from worker.engine.prompts import cut_off
from worker.engine.text import CLIP_TOKENS, load_tokenizer
from worker.engine.textual_inversion import parse


class PromptLength:
    """Counts with a tokenizer of its own: the pipeline's is changed by the job that has the device. For any thread.

    Raises CheckpointInvalid for a checkpoint without a tokenizer.
    """

    def __init__(self, checkpoint: Path):
        """`checkpoint`: a folder in the diffusers layout."""
        self._tokenizer = load_tokenizer(checkpoint / "tokenizer")
        text_encoder = json.loads((checkpoint / "text_encoder" / "config.json").read_text())
        positions = text_encoder.get("max_position_embeddings", CLIP_TOKENS)
        self._limit = min(self._tokenizer.model_max_length, positions)
        self._lock = threading.Lock()  # a tokenizer is told how to cut at every call

    def warnings(self, job: InpaintJob, embeddings: Sequence[tuple[EmbeddingRef, Asset]] = ()) -> tuple[str, ...]:
        """One sentence for each prompt that is longer than CLIP takes; a word of an embedding counts as its vectors.

        A negative prompt that is not used (guidance ≤ 1) is not judged. Raises EmbeddingInvalid.
        """
        words = {}
        for ref, asset in embeddings:
            embedding = parse(asset.weights, ref.token)
            words[embedding.token] = len(embedding.tokens)
        prompts = {"prompt": job.prompt, "negative_prompt": job.negative_prompt if job.guidance_scale > 1 else ""}
        with self._lock:
            lost = {name: cut_off(self._tokenizer, text, self._limit, words) for name, text in prompts.items()}
        return tuple(
            f"{name}: {count} of its tokens are cut off, since CLIP takes {self._limit} with its two marks; shorten it."
            for name, count in lost.items()
            if count
        )
