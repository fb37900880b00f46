"""A log line is one JSON object, about one job, and holds no secret."""

import json
import logging
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.logs import JsonFormatter, job_context, struck


def line(message, *arguments, error=None):
    info = (type(error), error, None) if error else None
    return JsonFormatter().format(logging.LogRecord("farm", logging.INFO, "x.py", 1, message, arguments, info))


def test_a_line_carries_its_job():
    with job_context(job="a", attempt=2), job_context(tenant="t"):
        inside = json.loads(line("hello %s", "you"))
    assert (inside["message"], inside["job"], inside["attempt"], inside["tenant"]) == ("hello you", "a", "2", "t")
    assert "job" not in json.loads(line("hello"))


@given(st.text(st.characters()))
def test_no_text_can_forge_a_line_or_move_a_cursor(text):
    made = line("%s", text)
    assert made.isascii() and made.isprintable()
    assert json.loads(made)["level"] == "info"


@pytest.mark.parametrize("text", ['x\n{"level": "critical"}', "\x1b[2J\x1b]0;gone\x07", "\r", "\u202e\u2028\x9b31m"])
def test_control_characters_are_kept_and_escaped(text):
    made = line("prompt: %s", text)
    assert text not in made and json.loads(made)["message"] == f"prompt: {text}"


@pytest.mark.parametrize(
    "text",
    [
        "redis://user:secret@host/0",
        "redis://:se/cr@secret@host/0",
        "https://b.example/k?X-Amz-Signature=secret&x=1",
        "https://b.example/k?a=1&token=secret",
        "https://b.example/k?a=1&X-Amz-Security-Token=secret",
        "{'X-Amz-Security-Token': b'secret', 'Host': 'b.example'}",
        "AWS4-HMAC-SHA256 Credential=AKIA/2030, SignedHeaders=host, Signature=secret",
        "x-amz-security-token:secret",
    ],
)
def test_secrets_are_struck_out(text):
    assert "secret" not in line("cannot reach %s now", text)
    assert "secret" not in line("failed", error=RuntimeError(text))
    with job_context(place=text):
        assert "secret" not in line("hello")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("AWS_SECRET_ACCESS_KEY", "hush+hush/hush", "hush+hush/hush"),
        ("AWS_SESSION_TOKEN", "hush+hush/hush", "hush+hush/hush"),
        ("FARM_REDIS_URL", "redis://worker:hush%2Bhush@redis.example/0", "hush+hush"),
        ("FARM_REDIS_URL", "redis://worker:hush%2Bhush@redis.example/0", "hush%2Bhush"),
    ],
)
def test_this_process_own_secrets_are_struck_out_wherever_they_stand(monkeypatch, name, value, told):
    assert told in line("AUTH failed for %s.", told)
    monkeypatch.setenv(name, value)
    assert json.loads(line("AUTH failed for %s.", told))["message"] == "AUTH failed for ***."


def test_a_short_password_does_not_hide_the_log(monkeypatch):
    monkeypatch.setenv("FARM_REDIS_URL", "redis://:a@redis.example/0")
    assert struck("a job failed") == "a job failed"


def test_an_address_that_cannot_be_read_is_no_reason_to_fail(monkeypatch):
    monkeypatch.setenv("FARM_REDIS_URL", "redis://[")
    assert struck("hello") == "hello"


def in_a_process(code):
    """The log of a process that runs this; it changes what is the whole process'."""
    given = f"import logging\nfrom farm.logs import name_process, set_up\n{code}"
    done = subprocess.run([sys.executable, "-c", given], capture_output=True, text=True, check=False)
    assert not done.stdout
    return [json.loads(made) for made in done.stderr.splitlines()]


def test_libraries_that_print_requests_are_kept_from_it():
    (seen,) = in_a_process("""
set_up("DEBUG")
logging.getLogger("botocore.endpoint").debug("request headers: %s", "whatever")
logging.getLogger("farm").debug("seen")
""")
    assert seen["message"] == "seen"


def test_warnings_and_what_nobody_caught_are_lines_too():
    warned, in_thread, last = in_a_process("""
import threading, warnings
set_up("INFO")
name_process("w")
warnings.warn("look\\nout")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise RuntimeError("the end of https://u:hush-hush@h/")
""")
    assert "look\nout" in warned["message"] and warned["level"] == "warning"
    assert "ZeroDivisionError" in in_thread["exception"]
    assert "RuntimeError: the end" in last["exception"] and "hush-hush" not in str(last)
    assert {line["worker"] for line in (warned, in_thread, last)} == {"w"}
