"""Every test that the fault table names is there, and the README shows the table as it is."""

import ast
from pathlib import Path

import pytest

from tests.faults.fault_table import BEGIN, END, FAULTS, README, rendered

TESTS = Path(__file__).parents[1]
PROOFS = [proof for faults in FAULTS.values() for fault in faults for proof in fault.proofs]


@pytest.mark.parametrize("proof", sorted(set(PROOFS)))
def test_a_proof_is_there(proof):
    file, _, name = proof.partition("::")
    functions = [node.name for node in ast.parse((TESTS / file).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in functions


def test_every_fault_is_proved_and_every_test_of_a_fault_is_named():
    assert all(fault.proofs for faults in FAULTS.values() for fault in faults)
    here = {
        f"faults/{path.name}::{node.name}"
        for path in Path(__file__).parent.glob("test_fault_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and path.name != Path(__file__).name
    }
    assert here <= set(PROOFS)


def test_the_readme_shows_the_table():
    shown = README.read_text().split(BEGIN)[1].split(END)[0]
    assert shown.strip() == rendered().strip(), "run: python -m tests.faults.fault_table"
