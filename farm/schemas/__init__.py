"""What crosses the wire: frozen, versioned, JSON in and out.

`InpaintJob` is what a producer asks for, `JobResult` what the farm answers, one JSON object each. Field names are
diffusers' first, then those of the hosted APIs. Unknown fields are refused by name; a value out of range is
`InvalidParameter` with the field's path. The same checks run in the client and again in the worker.
"""

from farm.schemas.batch import BatchFooter, BatchSummary
from farm.schemas.job import (
    MAX_PROMPT_BYTES,
    MAX_SPEC_BYTES,
    EmbeddingRef,
    InpaintJob,
    IpAdapterRef,
    LoraRef,
    OutputFormat,
    SchedulerName,
    spec_line,
)
from farm.schemas.message import SCHEMA_VERSION, Message, dump_line
from farm.schemas.result import ErrorInfo, Hashes, JobResult, Output, Receipt, Scores

__all__ = [
    "MAX_PROMPT_BYTES",
    "MAX_SPEC_BYTES",
    "SCHEMA_VERSION",
    "BatchFooter",
    "BatchSummary",
    "EmbeddingRef",
    "ErrorInfo",
    "Hashes",
    "InpaintJob",
    "IpAdapterRef",
    "JobResult",
    "LoraRef",
    "Message",
    "Output",
    "OutputFormat",
    "Receipt",
    "SchedulerName",
    "Scores",
    "dump_line",
    "spec_line",
]
