"""Writes `requirements/*.txt`: what each image installs, every wheel by its sha256.

    python docker/lock.py            all of them; needs the package index, installs nothing
    python docker/lock.py control    one

pip itself resolves `pyproject.toml` under `constraints.txt`, so that the images hold the versions that were tested, and
names the wheel it would take; the images install exactly those with `--require-hashes`. Run it when a requirement or a
pin has changed: a test fails until then. The wheels are those of linux/amd64.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docker" / "requirements"
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"  # where the wheels without CUDA are


class Lock(NamedTuple):
    extras: tuple[str, ...]  # of pyproject.toml, beside the base
    python: str  # of the image's base: Debian 12 has 3.11.2, Ubuntu 24.04 has 3.12.3
    cpu: bool = False  # torch without CUDA


GLIBC = {"3.11.2": 36, "3.12.3": 39}  # 2.x of the same bases
# pip's --python-version chooses wheels, but markers (python_full_version < '3.11.3') it judges by its own interpreter.
PIP_AS = """
import sys
from pip._internal.cli.main import main
from pip._vendor.packaging import markers
ours = markers.default_environment
theirs = {"python_full_version": sys.argv[1], "python_version": sys.argv[1].rsplit(".", 1)[0]}
markers.default_environment = lambda: {**ours(), **theirs}
sys.exit(main(sys.argv[2:]))
"""

LOCKS = {
    "build": Lock((), "3.11.2"),
    "control": Lock(("traces",), "3.11.2"),
    "worker": Lock(("worker", "traces"), "3.12.3"),
    "worker-cpu": Lock(("worker", "traces"), "3.11.2", cpu=True),
}


def wanted(name: str) -> list[str]:
    """The requirements that `name`.txt is resolved from."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if name == "build":
        return list(project["build-system"]["requires"])
    found = list(project["project"]["dependencies"])
    for extra in LOCKS[name].extras:
        found += project["project"]["optional-dependencies"][extra]
    return found


def pinned(package: str) -> str:
    """The version that constraints.txt names."""
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    return pins[package]


def digest(name: str) -> str:
    """Of the requirements it is made from; the lock states it, so that a stale one is noticed."""
    return hashlib.sha256(json.dumps([LOCKS[name], sorted(wanted(name))]).encode()).hexdigest()


def resolve(name: str) -> list[str]:
    """`package==version --hash=sha256:…`, one a line, sorted."""
    lock = LOCKS[name]
    # pip takes a platform by its letter: every glibc up to the base's, and 2014, which is 2.17 by another name.
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in range(GLIBC[lock.python], 4, -1)]
    platforms.append("--platform=manylinux2014_x86_64")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        command = [
            sys.executable, "-c", PIP_AS, lock.python, "install",
            "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:",
            f"--python-version={lock.python}", "--implementation=cp", *platforms, f"--target={folder}/target",
            f"--constraint={ROOT / 'constraints.txt'}", f"--report={report}",
        ]  # fmt: skip
        if lock.cpu:  # PYTORCH_INDEX= (empty) where pip's own configuration knows those wheels
            index = os.environ.get("PYTORCH_INDEX", PYTORCH_CPU)
            command += [f"--extra-index-url={index}"] if index else []
            command.append(f"torch=={pinned('torch')}+cpu")
        subprocess.run([*command, *wanted(name)], check=True)
        installs = json.loads(report.read_text())["install"]
    return sorted(_line(item) for item in installs)


def _line(item: dict) -> str:
    name, version = item["metadata"]["name"].lower().replace("_", "-"), item["metadata"]["version"]
    wheel = Path(unquote(urlsplit(item["download_info"]["url"]).path)).name
    return f"{name}=={version} --hash=sha256:{item['download_info']['archive_info']['hashes']['sha256']}  # {wheel}"


def main(names: list[str]) -> None:
    for name in names or list(LOCKS):
        head = f"# Made by docker/lock.py for CPython {LOCKS[name].python} on linux/amd64. Sources: {digest(name)}\n"
        index = f"--extra-index-url {PYTORCH_CPU}\n" if LOCKS[name].cpu else ""
        (FOLDER / f"{name}.txt").write_text(head + index + "\n".join(resolve(name)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
