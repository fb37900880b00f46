"""What a page has to know of a result: a small JSON object. The page's script shows it as text, never as HTML."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from farm.schemas import JobResult

Link = Callable[[str], str | None]


def row(result: JobResult, link: Link) -> dict[str, Any]:
    """The result as the script reads it. `link` turns a picture's address into one that a browser may open, or None.

    `score` is the worst of the gate's over all outputs as a share of its limit, None where the gate did not look.
    """
    judged = [output.scores for output in result.outputs if output.scores is not None]
    worst = max(judged, key=lambda scores: scores.worst, default=None)
    return {
        "key": key(result),
        "id": result.custom_id,
        "job": result.job_id,
        "generation": result.generation,
        "status": result.status.value,
        "error": [result.error.code, result.error.message] if result.error else None,
        "review": result.needs_review,
        "score": worst.worst if worst else None,
        "scores": worst.model_dump(exclude={"worst"}) if worst else None,
        "loras": [[name(lora.path), lora.scale] for lora in result.loras],
        "prompt": result.prompt,
        "seeds": [output.seed for output in result.outputs],
        "rerenders": result.rerenders,
        "outside": result.receipt.max_abs_diff_outside if result.receipt else None,
        "compared": result.receipt.pixels_outside if result.receipt else None,
        "seconds": result.timings.get("total"),
        "warnings": list(result.warnings),
        "size": [result.outputs[0].width, result.outputs[0].height] if result.outputs else None,
        "before": link(result.image),
        "after": [link(output.uri) for output in result.outputs],
    }


def key(result: JobResult) -> str:
    """Under what a decision is kept: a retry's picture is another picture, and is to be looked at again."""
    return f"{result.job_id}.{result.generation}"


def name(path: str) -> str:
    """A LoRA's file name without its ending."""
    return path.rpartition("/")[2].removesuffix(".safetensors")


def run_name(results: Iterable[JobResult]) -> str:
    """Names the place where the browser keeps the decisions: the same results, the same place, wherever the page is."""
    digest = hashlib.sha256()
    for result in results:
        digest.update(key(result).encode() + b"\n")
    return digest.hexdigest()[:16]
