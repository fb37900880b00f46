"""Every fault the farm must survive, what it must do then, and the tests that prove it.

The README's table is made of this: `python -m tests.faults.fault_table` writes it anew.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.faults.faults_around import FAULTS_AROUND
from tests.faults.faults_of_workers import WORKER_FAULTS

README: Final = Path(__file__).with_name("README.md")
BEGIN, END = "<!-- faults -->", "<!-- end of faults -->"

FAULTS: Final = {**WORKER_FAULTS, **FAULTS_AROUND}


def rendered() -> str:
    """The table, as Markdown."""
    lines = []
    for group, faults in FAULTS.items():
        lines += [f"### {group}", "", "| Fault | Expected | Proof |", "| --- | --- | --- |"]
        for fault in faults:
            proofs = "<br>".join(f"`{proof.rpartition('/')[2]}`" for proof in fault.proofs)
            lines.append(f"| {fault.fault} | {fault.expected} | {proofs} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    before, rest = README.read_text().split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{rendered()}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
