"""`farm check`"""

from __future__ import annotations

from pathlib import Path

import click

from farm.errors import FarmError, InputNotFound, InvalidParameter, JobFailed, ObjectTooLarge
from farm.pictures import misnamed, probe
from farm.schemas import MAX_SPEC_BYTES, InpaintJob
from producer.commands.common import connected, json_option, tell
from producer.manifest.rows import ENDINGS
from producer.preflight import Preflight

_SPEC_START = b"{"


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@json_option
def check(file: Path, as_json: bool) -> None:
    """Say whether a worker would take a job or a picture.

    FILE is a job's JSON, which is checked with all that it names, or a picture on this machine. Nothing is
    submitted. A catalogue of jobs: `farm run MANIFEST --dry-run`.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputNotFound(f"{file} cannot be read ({error.strerror}).") from None
    if file.suffix.lower() in ENDINGS:
        raise InvalidParameter("FILE", f"{file} is a manifest: check its rows with `farm run {file} --dry-run`")
    if data.lstrip()[:1] == _SPEC_START:
        _check_job(file, data, as_json=as_json)
    else:
        _check_picture(file, data, as_json=as_json)


def _check_job(file: Path, data: bytes, *, as_json: bool) -> None:
    if len(data) > MAX_SPEC_BYTES:
        raise ObjectTooLarge(f"{file} has {len(data):,} bytes, a job at most {MAX_SPEC_BYTES:,}.")
    job = InpaintJob.from_json(data)
    findings, coverage = Preflight(connected(), deep=True).check(job)
    for finding in findings:
        told = {"event": "warning" if finding.warning else "error", "code": finding.code, "message": finding.message}
        level = "warning" if finding.warning else finding.code
        tell(told, f"{level}: {finding.message}", as_json=as_json)
    bad = sum(not finding.warning for finding in findings)
    share = "" if coverage is None else f"; its mask lets {coverage:.1%} of the picture change"
    words = f"{file}: a worker would take this job{share}"
    if bad:
        raise JobFailed(f"{file}: a worker would refuse this job.")
    tell({"event": "good", "coverage": coverage}, words, as_json=as_json)


def _check_picture(file: Path, data: bytes, *, as_json: bool) -> None:
    try:
        info = probe(data)
    except FarmError as error:
        raise type(error)(f"{file}: {error}") from None
    told = {"format": info.format, "width": info.width, "height": info.height, "mode": info.mode, "bits": info.bits}
    words = f"{file}: {info.format}, {info.width}×{info.height} px, {info.mode}, {info.bits} bits a channel"
    if misnamed(file.name, info.format):
        words += "; its name promises another format, and its bytes count"
    tell({**told, "bytes": len(data), "misnamed": misnamed(file.name, info.format)}, words, as_json=as_json)


COMMAND = check
