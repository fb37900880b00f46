"""A log line is one JSON object, about one job, and holds no secret."""

import json
import logging

import pytest

from farm.logs import JsonFormatter, job_context


def line(message, *arguments, error=None):
    info = (type(error), error, None) if error else None
    return JsonFormatter().format(logging.LogRecord("farm", logging.INFO, "x.py", 1, message, arguments, info))


def test_a_line_carries_its_job():
    with job_context(job_id="a"), job_context(tenant="t"):
        inside = json.loads(line("hello %s", "you"))
    assert (inside["message"], inside["job_id"], inside["tenant"]) == ("hello you", "a", "t")
    assert "job_id" not in json.loads(line("hello"))


def test_a_prompt_cannot_forge_a_line():
    assert "\n" not in line('x\n{"level": "critical"}\x1b[2J') and "\x1b" not in line("\x1b[2J")


@pytest.mark.parametrize(
    "url",
    [
        "redis://user:secret@host/0",
        "redis://:se/cr@secret@host/0",
        "https://b.example/k?X-Amz-Signature=secret&x=1",
        "https://b.example/k?a=1&token=secret",
    ],
)
def test_secrets_are_struck_out(url):
    assert "secret" not in line("cannot reach %s now", url)
    assert "secret" not in line("failed", error=RuntimeError(url))
