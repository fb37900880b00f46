"""The objects that a job's pictures become: created once, or adopted from an earlier attempt of the very same job."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from farm import keys
from farm.config import Settings
from farm.errors import InputChanged, InputNotFound, ObjectExists, OutputExists
from farm.ledger import JobRef
from farm.schemas import InpaintJob, JobResult
from farm.shards import MAX_RESULT_BYTES
from farm.storage import ObjectStore, shown
from worker import images
from worker.lease import JobLease
from worker.verdicts import Attempt


class Outputs:
    """Raises what the store raises."""

    def __init__(self, settings: Settings, store: ObjectStore):
        self._settings, self._store = settings, store

    def there(self, ref: JobRef, job: InpaintJob) -> str:
        """The first output's address if all are there to stay and none is of an earlier attempt of this job; else "".

        What another job wrote stays if its result names it; if not, it is that job's to go on with, or to be collected.
        """
        places = range(job.num_images_per_prompt)
        uris = [keys.output(self._settings.store, job, ref.batch_id, place, ref.generation) for place in places]
        try:
            stay = all(self._stays(ref, uri, self._store.head(uri).metadata) for uri in uris)
        except InputNotFound:
            return ""
        return shown(uris[0]) if stay else ""

    def _stays(self, ref: JobRef, uri: str, told: Mapping[str, str]) -> bool:
        if "batch" not in told:  # no farm's
            return True
        if told["job"] == ref.job_id:
            return False
        root, generation = self._settings.store, int(told["generation"])
        writer = keys.result(root, told["tenant"], told["batch"], told["job"], generation)
        result = JobResult.from_json(self._store.get(writer, max_bytes=MAX_RESULT_BYTES).data)
        return uri in {output.uri for output in result.outputs}

    def write(self, attempt: Attempt, job: InpaintJob, index: int, data: bytes, lease: JobLease) -> tuple[str, bytes]:
        """Create an output once. Bytes that an earlier attempt of this very job left there are adopted, if it was given
        the same: a picture that was made of other bytes than the result says would be a wrong receipt."""
        uri = keys.output(self._settings.store, job, attempt.ref.batch_id, index, attempt.ref.generation)
        generation = str(attempt.ref.generation)
        given = _given(attempt)
        ref, digest = attempt.ref, sha256(data).hexdigest()
        whose = {"tenant": ref.tenant, "batch": ref.batch_id, "job": ref.job_id, "generation": generation}
        metadata = {**whose, "sha256": digest, **given}
        try:
            self._store.put(
                uri,
                data,
                content_type=images.CONTENT_TYPES[job.output_format],
                metadata=metadata,
                create_only=True,
                progress=lease.moved,
            )
            # What the receipt measures is what lies there now, not what was sent.
            return uri, self._store.get(uri, max_bytes=self._settings.max_image_bytes, progress=lease.moved).data
        except ObjectExists:
            there = self._store.get(uri, max_bytes=self._settings.max_image_bytes, progress=lease.moved)
            if (there.metadata.get("job"), there.metadata.get("generation")) != (attempt.ref.job_id, generation):
                raise OutputExists(f"{uri} is there already and is another job's; choose another output.") from None
            if changed := [what for what, digest in given.items() if there.metadata.get(what, digest) != digest]:
                raise InputChanged(
                    f"The job's {' and '.join(changed)} changed since an earlier attempt wrote {uri}; submit it again."
                ) from None
            return uri, there.data


def _given(attempt: Attempt) -> dict[str, str]:
    """Hashes of what the job names: they go with its outputs, where the next attempt looks if it finds them."""
    weights = "".join(f"{path} {digest}\n" for path, digest in sorted(attempt.lora_hashes.items()))
    return {**attempt.hashes, **({"weights": sha256(weights.encode()).hexdigest()} if weights else {})}
