"""Webhooks end to end: a real receiver over HTTP and HTTPS, a real store, a dispatcher that may restart at any time."""

import base64
import hashlib
import hmac
import json
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from farm import keys, metrics
from farm.dispatcher.webhooks import Webhooks
from farm.errors import UrlNotAllowed
from farm.states import JobState
from farm.tenants import Tenants
from farm.webhooks import outbox
from tests.integration.works import Works
from tests.servers.certificate import certified, serving

KEY = bytes(range(32))


class Receiver:
    """Answers with the next of `statuses`, 204 when there is none left, and keeps what it was sent."""

    def __init__(self, context=None):
        self.statuses, self.got, self.hang = [], [], threading.Event()
        self.headers, self.slowly = {}, False
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                outer.got.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                if outer.slowly:  # a byte now and then, without end, which no timeout of a single read notices
                    self.wfile.write(b"HTTP/1.1 200 ")
                    while not outer.hang.wait(0.2):
                        self.wfile.write(b"O")
                    return
                self.send_response(outer.statuses.pop(0) if outer.statuses else 204)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.handle_error = lambda *_: None  # a client that does not trust it is what a test is about
        if context:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.hang.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


def outcomes():
    return {name: metrics.webhooks.labels(name)._value.get() for name in metrics.WEBHOOK_OUTCOMES}


@contextmanager
def counted(**expected):
    before = outcomes()
    yield
    after = outcomes()
    assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == expected


class Farm(Works):
    def __init__(self, tmp_path, store, redis_url, port, **settings):
        secret = tmp_path / "secret"
        secret.write_bytes(b"whsec_" + base64.b64encode(KEY) + b"\n")
        super().__init__(
            store, f"file://{tmp_path / 'store'}", redis_url, webhook_hosts=(f"localhost:{port}",),
            webhook_allow_http=True, webhook_networks=("127.0.0.0/8", "::1/128"), webhook_secret_file=secret,
            **{"webhook_timeout": 1.0, **settings},
        )  # fmt: skip
        self.url = f"http://localhost:{port}/ended?shop=a"
        self.sender = self.another_sender()

    def another_sender(self, **options):
        options = {"resolver": lambda host, port: ["127.0.0.1"], **options}
        return Webhooks(self.shelf, Tenants.load(self.settings, with_keys=False), self.settings, **options)

    def due_now(self):
        self.sender._not_before.clear()
        self.sender._resting.clear()

    def left(self):
        return list(outbox.noted(self.store, self.root))


@pytest.fixture
def farm(local_store, redis_url, tmp_path, receiver):
    return Farm(tmp_path, local_store, redis_url, receiver.port)


def verified(headers, body, key=KEY):
    """As a receiver does it, by the specification."""
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    made = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return (
        f"v1,{made}" in headers["webhook-signature"].split(" ")
        and abs(time.time() - int(headers["webhook-timestamp"])) < 60
    )


def test_a_job_that_ends_is_told_once_signed_and_with_what_came_of_it(farm, receiver):
    handle = farm.submit(custom_id="sku-1", webhook_url=farm.url, metadata={"shop": "a"})
    assert farm.sender.look() == 0 and not receiver.got  # it has not ended
    farm.run(handle)
    with counted(delivered=1):
        assert farm.sender.look() == 1
        assert farm.sender.look() == 0
    ((path, headers, body),) = receiver.got
    assert path == "/ended?shop=a" and headers["host"] == f"localhost:{receiver.port}"
    assert headers["content-type"] == "application/json" and verified(headers, body)
    assert headers["webhook-id"] == f"job_{handle.id}_0"
    event, result = json.loads(body), handle.result(timeout=1)
    assert event["type"] == "job.succeeded" and event["timestamp"] == result.finished_at.isoformat()
    data = event["data"]
    assert (data["job_id"], data["custom_id"], data["status"]) == (handle.id, "sku-1", "succeeded")
    assert data["outputs"] == [{"uri": result.outputs[0].uri, "sha256": result.outputs[0].sha256}]
    assert data["metadata"] == {"shop": "a"} and data["needs_review"] is result.needs_review
    assert farm.left() == []


def test_every_end_is_told(farm, receiver):
    failed = farm.submit(webhook_url=farm.url, mask=farm.uri("absent.png"))
    assert farm.run(failed) is JobState.FAILED
    canceled = farm.submit(webhook_url=farm.url)
    canceled.cancel()
    farm.sender.look()
    told = {json.loads(body)["type"]: json.loads(body)["data"] for _, _, body in receiver.got}
    assert set(told) == {"job.failed", "job.canceled"}
    assert told["job.failed"]["error"]["code"] == "InputNotFound" and told["job.failed"]["outputs"] == []


def test_jobs_without_a_webhook_leave_no_note(farm, receiver):
    farm.run(farm.submit())
    assert farm.left() == [] and farm.sender.look() == 0


def test_what_was_not_taken_is_sent_again_under_the_same_id(farm, receiver):
    receiver.statuses = [500, 302, 429, 200]
    receiver.headers = {"location": f"http://localhost:{receiver.port}/elsewhere"}
    farm.run(farm.submit(webhook_url=farm.url))
    with counted(failed=3, delivered=1):
        for sent in range(1, 5):
            farm.sender.look()
            farm.sender.look()  # not at once again
            assert len(receiver.got) == sent
            farm.due_now()
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    assert {path for path, _, _ in receiver.got} == {"/ended?shop=a"}  # no redirect was followed
    assert all(verified(headers, body) for _, headers, body in receiver.got)
    assert farm.left() == []


def test_a_dispatcher_that_starts_anew_and_an_empty_redis_find_what_is_to_be_sent(farm, receiver):
    receiver.statuses = [503]
    farm.run(farm.submit(webhook_url=farm.url))
    farm.sender.look()
    farm.ledger._redis.flushall()
    assert farm.another_sender().look() == 1 and len(receiver.got) == 2


def test_a_worker_that_dies_between_note_and_result_promises_nothing_too_early(farm, receiver):
    handle = farm.submit(webhook_url=farm.url)
    outbox.note_job(farm.store, farm.root, handle._ref)
    assert farm.sender.look() == 0 and not receiver.got and len(farm.left()) == 1
    farm.run(handle)
    farm.due_now()
    assert farm.sender.look() == 1 and farm.left() == []


def test_gone_means_gone_and_a_day_is_enough(farm, receiver):
    receiver.statuses = [410]
    farm.run(farm.submit(webhook_url=farm.url))
    with counted(gone=1):
        farm.sender.look()
    assert farm.left() == []
    receiver.statuses = [500]
    farm.run(farm.submit(webhook_url=farm.url))
    object.__setattr__(farm.settings, "webhook_give_up_seconds", 1e-6)
    with counted(given_up=1):
        farm.sender.look()
    assert farm.left() == []


def test_a_batch_that_ends_is_told_with_its_numbers_and_again_after_a_retry(farm, receiver):
    batch = farm.client.submit_batch(farm.jobs(3), webhook_url=farm.url)
    farm.work_off(batch)
    assert farm.sender.look() == 1
    event = json.loads(receiver.got[0][2])
    assert event["type"] == "batch.ended" and event["data"]["batch_id"] == batch.id
    assert event["data"]["counts"] == {"succeeded": 3}
    with pytest.raises(UrlNotAllowed):
        farm.client.submit_batch(farm.jobs(1), webhook_url="https://elsewhere.example/")


def test_who_answers_a_byte_now_and_then_is_not_waited_for(farm, receiver):
    receiver.slowly = True
    farm.run(farm.submit(webhook_url=farm.url))
    with counted(failed=1):
        farm.sender.look()


def test_a_host_that_fails_rests_and_takes_no_turns(farm, receiver):
    receiver.statuses = [500] * 50
    for _ in range(8):
        farm.run(farm.submit(webhook_url=farm.url))
    farm.sender.look()
    assert len(receiver.got) <= 4  # as many as are on their way at once
    farm.sender.look()
    assert len(receiver.got) <= 4


def test_an_address_inside_is_refused_whatever_dns_says_first(farm, receiver):
    farm.run(farm.submit(webhook_url=farm.url))
    object.__setattr__(farm.settings, "webhook_networks", ())
    with counted(refused=1):
        farm.another_sender().look()
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return ["93.184.216.34"] if len(asked) > 1 else ["93.184.216.34", "10.0.0.7"]

    with counted(refused=1):
        farm.another_sender(resolver=rebinding).look()
    assert not receiver.got and len(asked) == 1 and len(farm.left()) == 1


def test_a_note_cannot_say_where_to_call_or_what(farm, receiver):
    silent = farm.submit(custom_id="quiet")  # names no webhook
    farm.run(silent)
    outbox.note_job(farm.store, farm.root, silent._ref)
    farm.store.put(
        keys.webhook(farm.root, "default", "0" * 32, "x.0"), b"[]", content_type="application/json", create_only=True
    )
    with counted(refused=1):
        farm.sender.look()
    assert not receiver.got and len(farm.left()) == 1  # what is no note at all stays for a person to look at


def test_without_a_secret_nothing_is_sent_unsigned(farm, receiver, tmp_path):
    farm.run(farm.submit(webhook_url=farm.url))
    (tmp_path / "secret").unlink()
    farm.sender.look()
    assert not receiver.got and len(farm.left()) == 1


def test_https_is_spoken_to_the_name_at_the_resolved_address(local_store, redis_url, tmp_path):
    pem = certified(tmp_path, "hooks.test")
    receiver = Receiver(serving(pem))
    try:
        farm = Farm(tmp_path, local_store, redis_url, receiver.port)
        hosts = (f"hooks.test:{receiver.port}", f"*.other.test:{receiver.port}")
        for name, value in (("webhook_hosts", hosts), ("webhook_allow_http", False)):
            object.__setattr__(farm.settings, name, value)
        farm.runner._tenants = farm.client.tenants = Tenants.load(farm.settings)
        trusting = ssl.create_default_context(cafile=str(pem))
        farm.run(farm.submit(webhook_url=f"https://hooks.test:{receiver.port}/"))
        assert farm.another_sender().look() == 0 and not receiver.got  # the system's authorities do not know it
        farm.run(farm.submit(webhook_url=f"https://a.other.test:{receiver.port}/"))
        # it is trusted, and it is not the one that was meant
        assert farm.another_sender(context=trusting).look() == 1
        assert len(receiver.got) == 1 and receiver.got[0][1]["host"] == f"hooks.test:{receiver.port}"
        with pytest.raises(UrlNotAllowed):
            farm.submit(webhook_url=f"http://hooks.test:{receiver.port}/")
    finally:
        receiver.close()


def test_it_runs_beside_the_dispatcher_and_stops(farm, receiver):
    object.__setattr__(farm.settings, "webhook_seconds", 0.02)
    farm.run(farm.submit(webhook_url=farm.url))
    sender = farm.another_sender()
    sender.start()
    end = time.monotonic() + 20
    while not receiver.got and time.monotonic() < end:
        time.sleep(0.02)
    sender.stop()
    sender._thread.join(10)
    assert len(receiver.got) == 1 and not sender._thread.is_alive()
