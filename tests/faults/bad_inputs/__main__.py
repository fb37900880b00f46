"""Writes the tables into the README: `python -m tests.faults.bad_inputs`."""

from tests.faults.bad_inputs.table import README, rendered

README.write_text(rendered(README.read_text()))
