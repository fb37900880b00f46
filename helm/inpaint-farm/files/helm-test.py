"""Asks the dispatchers behind $DISPATCHER until one that leads tells the backlog of $MODEL; ends 1 after a minute."""

import os
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

dispatcher, model = os.environ["DISPATCHER"], os.environ["MODEL"]
series, of = "farm_backlog_gpu_seconds{", f'model="{model}"'
deadline = time.monotonic() + float(os.environ.get("SECONDS_TO_WAIT", "60"))
last = "nothing was asked"
while time.monotonic() < deadline:
    try:
        with urlopen(f"{dispatcher}/readyz", timeout=5) as answer:
            assert answer.status == 200
        with urlopen(f"{dispatcher}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        if found := [line for line in lines if line.startswith(series) and of in line]:
            sys.stdout.write(found[0] + "\n")
            sys.exit(0)
        last = f"{series}{of}}} is not told: this dispatcher does not lead, or none does"
    except (URLError, TimeoutError, ConnectionError) as error:
        last = f"{dispatcher}: {error}"
    time.sleep(1)
sys.exit(last)
