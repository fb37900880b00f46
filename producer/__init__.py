"""The job-submission SDK and the `farm` command line. Light: no torch.

from producer import Client, InpaintJob
handle = Client().submit(InpaintJob(image="s3://…", mask="s3://…", prompt="a marble table top"))
print(handle.result(timeout=600).outputs[0].uri)
"""

from farm.schemas import InpaintJob, JobResult, LoraRef
from producer.client import Client
from producer.handle import JobHandle

__all__ = ["Client", "InpaintJob", "JobHandle", "JobResult", "LoraRef"]
