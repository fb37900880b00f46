"""What of a trace matters to a render farm: how often a LoRA comes again and how soon, and how much work a job is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import pairwise

from tests.benchmarks.trace import KINDS, TraceJob

DEPTHS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOPS = (1, 10, 50, 100, 200)


def statistics(jobs: Sequence[TraceJob]) -> dict[str, float]:
    """Numbers by name. Shares are of all jobs, or of those that the name tells."""
    with_lora = [job for job in jobs if job.loras]
    sets = [job.lora_set for job in with_lora]
    return {
        **{f"kind is {kind}": _share(job.kind == kind for job in jobs) for kind in KINDS},
        **_loras(jobs, with_lora),
        **_recency("LoRA set", sets),
        **_popularity("LoRA", [name for names in sets for name in names]),
        **_checkpoints(jobs),
        **_work(jobs, with_lora),
        **_lengths(jobs),
        "job is just like one of the 8 before it": _share(
            job in jobs[max(0, index - 8) : index] for index, job in enumerate(jobs)
        ),
    }


def stack_depths(things: Sequence[Hashable]) -> list[int | None]:
    """For each, how many different others came since it came last; None for the first time.

    It is the place in a least-recently-used stack (Mattson et al., IBM Systems Journal 9(2), 1970), so the share below
    n is the hit rate of a cache of n places.
    """
    stack: list[Hashable] = []
    depths: list[int | None] = []
    for thing in things:
        try:
            depth = stack.index(thing)
            del stack[depth]
        except ValueError:
            depth = None
        depths.append(depth)
        stack.insert(0, thing)
    return depths


def _loras(jobs: Sequence[TraceJob], with_lora: Sequence[TraceJob]) -> dict[str, float]:
    after = [later for earlier, later in pairwise(jobs) if earlier.loras]
    scales = Counter(scale for job in with_lora for _, scale in job.loras)
    return {
        "job has LoRAs": len(with_lora) / len(jobs),
        "job has LoRAs, after one that has": _share(bool(job.loras) for job in after),
        "1 LoRA, where any": _share(len(job.loras) == 1 for job in with_lora),
        "2 LoRAs, where any": _share(len(job.loras) == 2 for job in with_lora),
        "3 or more LoRAs, where any": _share(len(job.loras) > 2 for job in with_lora),
        "scale is 1.0": scales[1.0] / scales.total(),
        "scale is 0.8": scales[0.8] / scales.total(),
        "scale is less than 0.5": sum(n for scale, n in scales.items() if scale < 0.5) / scales.total(),
    }


def _recency(what: str, things: Sequence[Hashable]) -> dict[str, float]:
    depths = stack_depths(things)
    return {
        f"{what} is new": _share(depth is None for depth in depths),
        **{f"{what} is one of the last {n}": _share(d is not None and d < n for d in depths) for n in DEPTHS},
    }


def _popularity(what: str, things: Sequence[Hashable]) -> dict[str, float]:
    counts = sorted(Counter(things).values(), reverse=True)
    return {
        **{f"{what} is one of the {n} most used": sum(counts[:n]) / len(things) for n in TOPS},
        f"{what} of the catalogue is used once": _share(count == 1 for count in counts),
    }


def _checkpoints(jobs: Sequence[TraceJob]) -> dict[str, float]:
    counts = [count for _, count in Counter(job.checkpoint for job in jobs).most_common()]
    main: dict[tuple[str, ...], Counter[str]] = {}
    for job in jobs:
        if job.loras:
            main.setdefault(job.lora_set, Counter())[job.checkpoint] += 1
    return {
        **{f"checkpoint is one of the {n} most used": sum(counts[:n]) / len(jobs) for n in (1, 3, 10)},
        "checkpoint is the job's before": _share(a.checkpoint == b.checkpoint for a, b in pairwise(jobs)),
        "checkpoint is the LoRA set's usual one": sum(max(c.values()) for c in main.values())
        / sum(c.total() for c in main.values()),
    }


def _work(jobs: Sequence[TraceJob], with_lora: Sequence[TraceJob]) -> dict[str, float]:
    found = {}
    for who, some in (("", [job for job in jobs if not job.loras]), (", with LoRAs", with_lora)):
        images = [job.images for job in some if job.images is not None]
        steps = [job.steps for job in some if job.steps is not None]
        found |= {f"{n} images a prompt{who}": _share(image == n for image in images) for n in (1, 2, 4, 8)}
        found |= {f"{n} steps{who}": _share(step == n for step in steps) for n in (30, 35, 40)}
        found[f"mean steps{who}"] = sum(steps) / len(steps)
    return found


def _lengths(jobs: Sequence[TraceJob]) -> dict[str, float]:
    prompts = sorted(job.prompt_length for job in jobs if job.prompt_length is not None)
    negatives = sorted(job.negative_prompt_length for job in jobs if job.negative_prompt_length is not None)
    return {
        **{f"prompt's length, {p} % quantile": float(prompts[len(prompts) * p // 100]) for p in (10, 50, 90, 99)},
        "job has a negative prompt": len(negatives) / len(jobs),
        "negative prompt's length, median": float(negatives[len(negatives) // 2]),
    }


def _share(truths) -> float:
    listed = [bool(truth) for truth in truths]
    return sum(listed) / len(listed)
