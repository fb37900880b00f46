"""The job-submission SDK and the `farm` command line. Light: no torch.

from producer import Client, InpaintJob
handle = Client().submit(InpaintJob(image="s3://…", mask="s3://…", prompt="a marble table top"))
print(handle.result(timeout=600).outputs[0].uri)
"""

from farm.schemas import BatchSummary, InpaintJob, JobResult, LoraRef
from farm.states import JobState
from producer.async_client import AsyncClient
from producer.batch import BatchHandle
from producer.client import Client
from producer.handle import JobEvent, JobHandle
from producer.manifest import Manifest

__all__ = [
    "AsyncClient",
    "BatchHandle",
    "BatchSummary",
    "Client",
    "InpaintJob",
    "JobEvent",
    "JobHandle",
    "JobResult",
    "JobState",
    "LoraRef",
    "Manifest",
]
