"""What lies already where a job's pictures are to go: one judgement for workers and for the farm in memory."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

from farm import keys
from farm.errors import InputNotFound, InvalidInput, OutputExists
from farm.ledger import JobRef
from farm.schemas import InpaintJob
from farm.shards import Shelf
from farm.storage import shown


def signature(ref: JobRef) -> dict[str, str]:
    """Metadata of an output: whose it is."""
    return {"tenant": ref.tenant, "batch": ref.batch_id, "job": ref.job_id, "generation": str(ref.generation)}


def wrote(ref: JobRef, told: Mapping[str, str]) -> bool:
    """Whether an earlier attempt of this very job did, by an output's metadata; a release before had only these two."""
    return (told.get("job"), told.get("generation")) == (ref.job_id, str(ref.generation))


def skipped_for(shelf: Shelf, ref: JobRef, job: InpaintJob) -> str:
    """The first output's address if all are there to stay and none is of an earlier attempt of this job; else "".

    What another job wrote stays if its result names it; if not, it is that job's to go on with, or to be collected.
    """
    places = range(job.num_images_per_prompt)
    uris = [keys.output(shelf.root, job, ref.batch_id, place, ref.generation) for place in places]
    try:
        stay = all(_standing(shelf, ref, uri, shelf.store.head(uri).metadata) is Standing.STAYS for uri in uris)
    except InputNotFound:
        return ""
    return shown(uris[0]) if stay else ""


def skip_warning(there: str) -> str:
    """What the result of a job says that wrote nothing, since its pictures are `there`."""
    return f"{there} is there already, so nothing was written (if_exists: skip)."


def refusal(shelf: Shelf, ref: JobRef, uri: str, told: Mapping[str, str]) -> OutputExists:
    """Of writing over what is not the job's own: what is to be done follows from what became of whose it is."""
    try:
        words = _REFUSALS[_standing(shelf, ref, uri, told)]
    except InvalidInput:  # what cannot be read of it changes nothing here
        words = _REFUSALS[Standing.STAYS]
    return OutputExists(f"{shown(uri)} is there already, {words}.")


class Standing(Enum):
    """Of a picture under an output's name."""

    OWN = auto()
    STAYS = auto()
    UNENDED = auto()
    LEFT = auto()


_REFUSALS: Final = {
    Standing.STAYS: "and not this job's; choose another output",
    Standing.UNENDED: "of another job that has not ended; try this one again when it has, or choose another output",
    Standing.LEFT: "of a job that came to nothing; try this one again when it is deleted, or choose another output",
}


def _standing(shelf: Shelf, ref: JobRef, uri: str, told: Mapping[str, str]) -> Standing:
    if wrote(ref, told):
        return Standing.OWN
    if "batch" not in told:  # no farm's
        return Standing.STAYS
    result = shelf.result(_writer(told))
    if result is None:
        return Standing.UNENDED
    return Standing.STAYS if uri in {output.uri for output in result.outputs} else Standing.LEFT


def _writer(told: Mapping[str, str]) -> JobRef:
    """The job that signed an output, as far as its result is found by it."""
    return JobRef(
        told["job"], told["tenant"], told["batch"], model="", shard=0, offset=0, length=0,
        generation=int(told["generation"]),
    )  # fmt: skip
