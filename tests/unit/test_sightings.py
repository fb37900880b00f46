"""What `farm top` sees: each worker's metrics, those of a Prometheus, and who does not answer."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from farm.errors import InvalidParameter, QueueUnavailable
from producer.commands.top import _row
from producer.sightings import Sighting, from_prometheus, from_workers

METRICS = """# TYPE farm_images_total counter
farm_images_total{model="a"} 7.0
farm_images_total{model="b"} 3.0
farm_denoise_steps_total 200.0
farm_engine_busy_seconds_total 9.0
farm_jobs_total{model="a",status="failed",error="NsfwContent"} 2.0
farm_jobs_total{model="a",status="succeeded",error=""} 10.0
farm_worker_state{state="ready"} 1.0
farm_worker_state{state="draining"} 0.0
farm_lora_resident 4.0
farm_lora_swaps_total{tier="resident"} 6.0
farm_lora_swaps_total{tier="ram"} 3.0
farm_lora_swaps_total{tier="remote"} 1.0
farm_vram_bytes{device="cuda",kind="allocated"} 1e9
farm_vram_bytes{device="cuda",kind="total"} 8e10
"""


@contextmanager
def serving(*answers: str):
    """A web server that answers one after the other; its address."""
    left = list(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = (left.pop(0) if len(left) > 1 else left[0]).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_worker_s_numbers_and_rates():
    later = METRICS.replace('model="a"} 7.0', 'model="a"} 12.0').replace(
        "busy_seconds_total 9.0", "busy_seconds_total 11.0"
    )
    with serving(METRICS, later) as url:
        before, now = from_workers([url]), from_workers([url])
    row = _row(now[0], before, 2.5)
    assert (row["state"], row["images"], row["failed"], row["lora_resident"]) == ("ready", 15, 2, 4)
    assert (row["images_per_second"], row["busy"]) == (2.0, 0.8)
    assert (row["lora_hits"], row["vram_bytes"]["total"]) == (0.9, 80_000_000_000)


def test_one_that_is_away_is_told_among_the_others():
    with serving(METRICS) as url:
        rows = [_row(one, [], 1.0) for one in from_workers([url, "127.0.0.1:1", "no.such.host.invalid"])]
    assert [row["state"] for row in rows] == ["ready", "away", "away"]
    assert rows[1]["trouble"]


def test_what_is_no_metrics_page_is_a_trouble_too():
    with serving("<html>{{{") as url:
        (seen,) = from_workers([url])
    assert seen.trouble


def test_a_prometheus_tells_of_every_instance():
    def series(name, instance, value, **labels):
        return {"metric": {"__name__": name, "instance": instance, **labels}, "value": [0, str(value)]}

    result = [
        series("farm_images_total", "one:9090", 5, model="a"),
        series("farm_images_total", "two:9090", 6, model="a"),
        series("farm_worker_state", "one:9090", 1, state="draining"),
    ]
    with serving(json.dumps({"status": "success", "data": {"result": result}})) as url:
        one, two = from_prometheus(url)
    assert (one.name, one.total("farm_images_total"), two.total("farm_images_total", model="a")) == ("one:9090", 5, 6)
    assert one.by("farm_worker_state", "state") == {"draining": 1}
    with serving("{}") as url, pytest.raises(QueueUnavailable, match="Prometheus"):
        from_prometheus(url)


@pytest.mark.parametrize("url", ["ftp://host", "file:///etc/passwd", "http://"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(InvalidParameter):
        from_workers([url])


def test_what_a_worker_does_not_say_is_zero_or_unknown():
    row = _row(Sighting("new", {}), [], 1.0)
    assert (row["state"], row["images"], row["lora_hits"]) == ("?", 0, None)
