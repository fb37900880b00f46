"""The bad-input table as data: what comes in, how it is made, and what the farm must say to it.

`test_bad_inputs.py` runs every row; `python -m tests.faults.bad_inputs` writes the table into the folder's README.
"""

from tests.faults.bad_inputs.acts import ACTS
from tests.faults.bad_inputs.messages import MESSAGES
from tests.faults.bad_inputs.pictures import PICTURES
from tests.faults.bad_inputs.places import PLACES
from tests.faults.bad_inputs.row import Act, Line, Message, Row
from tests.faults.bad_inputs.specs import SPECS
from tests.faults.bad_inputs.weights import WEIGHTS

ROWS: dict[str, tuple[Row, ...]] = {
    "Pictures": PICTURES,
    "Weights": WEIGHTS,
    "Specs": SPECS,
    "Places and tenants": PLACES,
}

__all__ = ["ACTS", "MESSAGES", "ROWS", "Act", "Line", "Message", "Row"]
