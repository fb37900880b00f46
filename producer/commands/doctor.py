"""`farm doctor`"""

from __future__ import annotations

from dataclasses import asdict

import click

from farm.config import load_settings
from farm.errors import Misconfigured
from producer.commands.common import json_option, tell
from producer.diagnosis import diagnose

_MARKS = {"good": "ok  ", "warning": "warn", "bad": "BAD "}


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what is wrong with this farm, and what to change.

    It looks at Redis, the store, the clock, and a worker's device and model. Run it where a worker or
    dispatcher runs, with its environment: what each role may do differs.
    """
    bad = 0
    for symptom in diagnose(load_settings()):
        bad += symptom.level == "bad"
        cure = f"\n      → {symptom.cure}" if symptom.cure else ""
        tell(asdict(symptom), f"{_MARKS[symptom.level]}  {symptom.what}: {symptom.seen}{cure}", as_json=as_json)
    if bad:
        raise Misconfigured(f"Marked BAD: {bad}; change that before this farm is trusted with work.")


COMMAND = doctor
