"""The objects that a job's pictures become: created once, or adopted from an earlier attempt of the very same job."""

from __future__ import annotations

from hashlib import sha256

from farm import keys, outputs
from farm.config import Settings
from farm.errors import InputChanged, ObjectExists
from farm.ledger import JobRef
from farm.schemas import InpaintJob
from farm.shards import Shelf
from farm.storage import ObjectStore
from worker import images
from worker.lease import JobLease
from worker.verdicts import Attempt


class Outputs:
    """Raises what the store raises."""

    def __init__(self, settings: Settings, store: ObjectStore):
        self._settings, self._store = settings, store
        self._shelf = Shelf(store, settings.store)

    def there(self, ref: JobRef, job: InpaintJob) -> str:
        """As `farm.outputs.skipped_for`."""
        return outputs.skipped_for(self._shelf, ref, job)

    def write(self, attempt: Attempt, job: InpaintJob, index: int, data: bytes, lease: JobLease) -> tuple[str, bytes]:
        """Create an output once. Bytes that an earlier attempt of this very job left there are adopted, if it was given
        the same: a picture that was made of other bytes than the result says would be a wrong receipt."""
        uri = keys.output(self._settings.store, job, attempt.ref.batch_id, index, attempt.ref.generation)
        given = _given(attempt)
        metadata = {**outputs.signature(attempt.ref), "sha256": sha256(data).hexdigest(), **given}
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
            if not outputs.wrote(attempt.ref, there.metadata):
                raise outputs.refusal(self._shelf, attempt.ref, uri, there.metadata) from None
            if changed := [what for what, digest in given.items() if there.metadata.get(what, digest) != digest]:
                raise InputChanged(
                    f"The job's {' and '.join(changed)} changed since an earlier attempt wrote {uri}; submit it again."
                ) from None
            return uri, there.data


def _given(attempt: Attempt) -> dict[str, str]:
    """Hashes of what the job names: they go with its outputs, where the next attempt looks if it finds them."""
    weights = "".join(f"{path} {digest}\n" for path, digest in sorted(attempt.lora_hashes.items()))
    return {**attempt.hashes, **({"weights": sha256(weights.encode()).hexdigest()} if weights else {})}
