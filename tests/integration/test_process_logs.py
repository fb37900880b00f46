"""What real processes write to their logs: a JSON object a line, which says what job it is about."""

import json
import signal

from farm.schemas import InpaintJob
from producer.client import Client
from tests.integration.quick_farm import QuickFarm


def lines(log):
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_every_line_of_a_worker_and_a_dispatcher_is_json_and_names_its_job(tmp_path):
    with QuickFarm(tmp_path) as farm:
        farm.wait_ready()
        farm.pictures()
        inputs = {"image": f"file://{farm.inputs}/photo.png", "mask": f"file://{farm.inputs}/mask.png"}
        client = Client(farm.settings)
        forged = client.submit(InpaintJob(**inputs, prompt='x\n{"level": "critical"}\x1b[2J', num_inference_steps=1))
        forged.result(timeout=60)
        failed = client.submit(InpaintJob(**inputs, tenant="acme", prompt="exit", num_inference_steps=1))
        farm.worker.wait_until(lambda: failed.peek() is not None, 60)
        batch = client.submit_batch([InpaintJob(**inputs, num_inference_steps=1) for _ in range(2)])
        batch.wait(timeout=60)
        farm.worker.wait_until(lambda: "the batch is done" in (tmp_path / "farm" / "dispatcher.log").read_text(), 60)
        for process in (farm.worker, farm.dispatcher):
            process.popen.send_signal(signal.SIGTERM)
            process.popen.wait(30)
        worker, dispatcher = (lines(tmp_path / "farm" / f"{name}.log") for name in ("worker", "dispatcher"))

    for line in (*worker, *dispatcher):
        assert {"time", "level", "logger", "message"} <= line.keys()
    assert {line.get("worker") for line in worker} == {"worker"}
    (named,) = {line.get("worker") for line in dispatcher}
    assert named

    of_one = [line for line in worker if line.get("job") == forged.id]
    assert of_one[-1]["message"] == "job succeeded"
    assert (of_one[-1]["batch"], of_one[-1]["tenant"], of_one[-1]["attempt"]) == (forged.batch_id, "default", "1")
    (error,) = [line for line in worker if line.get("job") == failed.id and "exception" in line]
    assert (error["tenant"], error["batch"]) == ("acme", failed.batch_id) and "SystemExit" in error["exception"]
    assert len({line["job"] for line in worker if line.get("batch") == batch.id}) == 2
    (done,) = [line for line in dispatcher if line.get("batch") == batch.id and "is done" in line["message"]]
    assert done["tenant"] == "default"
