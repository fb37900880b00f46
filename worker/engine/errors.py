"""The engine's errors: each has a stable `code`, and a message that says what is wrong and what to do.

    EngineError
    ├── InvalidParameter       an argument outside its range, or two that exclude each other
    ├── CheckpointInvalid      a checkpoint with a missing, extra or misshapen tensor, or no checkpoint at all
    ├── UnsafeWeightsFormat    a pickle where safetensors is due
    ├── LoraInvalid            a LoRA file that cannot be read or understood
    │   ├── LoraIncompatible   made for another base: a rank or shape that does not fit
    │   ├── LoraNoEffect       not one key matches this model
    │   └── LoraNonFinite      NaN or Inf among its weights
    ├── EmbeddingInvalid       a textual inversion that cannot be used
    ├── NonFiniteOutput        the model made NaN or Inf
    ├── BlackOutput            the decoder made nothing but zeros
    └── FeatureUnavailable     an optional library is not installed

They are ValueErrors, because diffusers raises ValueError for the same misuse and callers written for it catch that.
"""


class EngineError(ValueError):
    code = "EngineError"


class InvalidParameter(EngineError):
    """`field` is the argument's name, `rule` what it must satisfy."""

    code = "InvalidParameter"

    def __init__(self, field: str, rule: str):
        super().__init__(f"`{field}` {rule}")
        self.field, self.rule = field, rule


class CheckpointInvalid(EngineError):
    code = "CheckpointInvalid"


class UnsafeWeightsFormat(EngineError):
    code = "UnsafeWeightsFormat"


class LoraInvalid(EngineError):
    code = "LoraInvalid"


class LoraIncompatible(LoraInvalid):
    code = "LoraIncompatible"


class LoraNoEffect(LoraInvalid):
    code = "LoraNoEffect"


class LoraNonFinite(LoraInvalid):
    code = "LoraNonFinite"


class EmbeddingInvalid(EngineError):
    code = "EmbeddingInvalid"


class NonFiniteOutput(EngineError):
    code = "NonFiniteOutput"


class BlackOutput(EngineError):
    code = "BlackOutput"


class FeatureUnavailable(EngineError):
    code = "FeatureUnavailable"
