"""The farm's errors. Each class has a stable `code` (what results and clients see) and `retryable`.

    FarmError
    ├── InvalidInput              the job or what it points at is wrong: never retried
    │   ├── InvalidParameter, UnknownField, UnsupportedSpecVersion, SpecTooLarge, InvalidPrompt, InvalidName,
    │   │   UrlNotAllowed, DeadlineInPast, UnknownModel
    │   ├── InputNotFound, InputForbidden, InputChanged, ObjectTooLarge, AccessDenied, SignatureInvalid
    │   ├── UnsupportedImageFormat, ImageTruncated, ImageTooLarge, ImageSizeOutOfRange, AnimatedImageUnsupported,
    │   │   MaskSizeMismatch, MaskEmpty
    │   ├── UnsafeWeightsFormat, LoraInvalid, LoraIncompatible, LoraNoEffect, LoraNonFinite, LoraNotFound,
    │   │   LoraHashMismatch, CheckpointInvalid, EmbeddingInvalid, FeatureUnavailable
    │   └── NonFiniteOutput, BlackOutput, NsfwContent, OutputExists, IdempotencyConflict, SpecDamaged
    ├── Transient                 the world is at fault: retried with full jitter
    │   └── StoreUnavailable (SpecUnreadable among it), QueueUnavailable, QuotaExceeded, FarmFull
    ├── Resource                  out of memory: once more, with a smaller batch
    ├── InternalError             a failure that nobody foresaw
    ├── WorkerCrashed             the job took down several workers: given up
    ├── WorkerFatal               nothing may be committed, the process ends
    ├── Preempted                 the machine is taken away: re-queued, not charged
    ├── Canceled, DeadlineExceeded
    ├── JobFailed, ResultTimeout, OverBudget  raised by a JobHandle or a run, never stored
    ├── ObjectExists              a create-once write came second
    └── Misconfigured             the farm itself is set up wrongly
        └── QueueForbidden        Redis knows another user, password, database or fewer rights: no try changes that

`BY_CODE` maps a code back to its class; an exception from elsewhere that carries a known `code` (the engine's do)
is mapped by `from_foreign`.
"""

from __future__ import annotations

from typing import ClassVar


class FarmError(Exception):
    """Base of all. The message is one sentence for a person: what is wrong and what to do."""

    code: ClassVar[str] = "FarmError"
    retryable: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.code = cls.__name__

    @property
    def message(self) -> str:
        return str(self)


# Wrong for good


class InvalidInput(FarmError):
    pass


class InvalidParameter(InvalidInput):
    """`field` is the job field's path, `rule` what it must satisfy."""

    def __init__(self, field: str, rule: str):
        super().__init__(f"{field}: {rule}")
        self.field, self.rule = field, rule


class UnknownField(InvalidInput):
    pass


class UnsupportedSpecVersion(InvalidInput):
    pass


class SpecTooLarge(InvalidInput):
    pass


class InvalidPrompt(InvalidInput):
    pass


class InvalidName(InvalidInput):
    pass


class UrlNotAllowed(InvalidInput):
    pass


class DeadlineInPast(InvalidInput):
    pass


class UnknownModel(InvalidInput):
    pass


class InputNotFound(InvalidInput):
    pass


class InputForbidden(InvalidInput):
    pass


class InputChanged(InvalidInput):
    pass


class ObjectTooLarge(InvalidInput):
    pass


class AccessDenied(InvalidInput):
    pass


class SignatureInvalid(InvalidInput):
    pass


class UnsupportedImageFormat(InvalidInput):
    pass


class ImageTruncated(InvalidInput):
    pass


class ImageTooLarge(InvalidInput):
    pass


class ImageSizeOutOfRange(InvalidInput):
    pass


class AnimatedImageUnsupported(InvalidInput):
    pass


class MaskSizeMismatch(InvalidInput):
    pass


class MaskEmpty(InvalidInput):
    pass


class UnsafeWeightsFormat(InvalidInput):
    pass


class LoraInvalid(InvalidInput):
    pass


class LoraIncompatible(LoraInvalid):
    pass


class LoraNoEffect(LoraInvalid):
    pass


class LoraNonFinite(LoraInvalid):
    pass


class LoraNotFound(InvalidInput):
    pass


class LoraHashMismatch(InvalidInput):
    pass


class CheckpointInvalid(InvalidInput):
    pass


class FeatureUnavailable(InvalidInput):
    pass


class EmbeddingInvalid(InvalidInput):
    pass


class NonFiniteOutput(InvalidInput):
    pass


class BlackOutput(InvalidInput):
    pass


class NsfwContent(InvalidInput):
    pass


class OutputExists(InvalidInput):
    pass


class IdempotencyConflict(InvalidInput):
    pass


class SpecDamaged(InvalidInput):
    pass


# Worth another try


class Transient(FarmError):
    retryable = True


class StoreUnavailable(Transient):
    pass


class SpecUnreadable(StoreUnavailable):
    """Never committed: without its spec a job has no result."""


class QueueUnavailable(Transient):
    pass


class QuotaExceeded(Transient):
    """A tenant has as much accepted and unfinished work as it may; what was accepted stays."""


class FarmFull(Transient):
    """Redis has no room for more of an index; what was accepted stays."""


class Resource(FarmError):
    retryable = True


class Preempted(FarmError):
    retryable = True


# The end of a worker, of a job, of a wait


class InternalError(FarmError):
    pass


class WorkerCrashed(FarmError):
    pass


class WorkerFatal(FarmError):
    pass


class Canceled(FarmError):
    pass


class DeadlineExceeded(FarmError):
    pass


class JobFailed(FarmError):
    """Raised by `JobHandle.result()` for a job that did not succeed; `result` is its JobResult."""

    def __init__(self, message: str, result: object = None):
        super().__init__(message)
        self.result = result


class ResultTimeout(FarmError):
    pass


class OverBudget(FarmError):
    """Raised by a run that would cost, or has cost, more than it may; what was submitted is paused."""


class ObjectExists(FarmError):
    pass


class Misconfigured(FarmError):
    pass


class QueueForbidden(Misconfigured):
    pass


def _tree(cls: type[FarmError]) -> dict[str, type[FarmError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


BY_CODE: dict[str, type[FarmError]] = _tree(FarmError)


def from_foreign(error: BaseException) -> FarmError | None:
    """The farm's error for an exception that carries a known `code` (as the engine's do), else None."""
    if isinstance(error, FarmError):
        return error
    cls = BY_CODE.get(getattr(error, "code", ""))
    if cls is None:
        return None
    mapped = cls.__new__(cls)
    Exception.__init__(mapped, str(error))
    return mapped
