"""Prints what this image holds as CycloneDX 1.6 JSON: the Python packages beside this interpreter, and dpkg's.

python sbom.py NAME
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib.metadata import distributions


def python_packages() -> list[dict]:
    found = {d.metadata["Name"].lower().replace("_", "-"): d for d in distributions()}
    return [
        {
            "type": "library",
            "name": name,
            "version": dist.version,
            "purl": f"pkg:pypi/{name}@{dist.version}",
            **_licence(dist.metadata.get("License-Expression")),
        }
        for name, dist in sorted(found.items())
    ]


def _licence(expression: str | None) -> dict:
    return {"licenses": [{"expression": expression}]} if expression else {}


def system_packages() -> list[dict]:
    distro = platform.freedesktop_os_release()["ID"]
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${binary:Package} ${Version} ${Architecture}\n"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    rows = sorted(tuple(line.split(" ")) for line in listed.splitlines())
    return [
        {
            "type": "library",
            "name": name.split(":")[0],
            "version": version,
            "purl": f"pkg:deb/{distro}/{name.split(':')[0]}@{version}?arch={architecture}",
        }
        for name, version, architecture in rows
    ]


def bill(name: str) -> dict:
    """No time and no random serial number: the same image has the same bill."""
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": name}},
        "components": python_packages() + system_packages(),
    }


if __name__ == "__main__":
    json.dump(bill(sys.argv[1]), sys.stdout, indent=1)
