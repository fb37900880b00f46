"""A worker's bank in a process of its own: `python -m tests.integration.bank_worker STORE FOLDER MODE NAME…`.

Mode `hold` holds each name of the store and prints `name tier sha256` lines; `die` is killed while it writes the first.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from farm.schemas import LoraRef
from farm.storage import open_store
from worker.bank import Budgets, LoraBank

DISK = 700_000  # bytes of the disk tier


def main() -> None:
    url, folder, mode, *names = sys.argv[1:]
    budgets = Budgets(device=0, ram=0, disk=DISK, file=10**6)
    bank = LoraBank(open_store(url), lambda data: data, device="cpu", budgets=budgets, folder=Path(folder), threads=2)
    if mode == "die":
        write = os.write

        def half(fd: int, data: memoryview) -> int:
            if "/partial/" in str(Path(f"/proc/self/fd/{fd}").readlink()):
                write(fd, data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return write(fd, data)

        os.write = half
    for name in names:
        with bank.hold([LoraRef(path=f"{url}/{name}")]) as (asset,):
            print(name, asset.tier, asset.sha256, flush=True)
    time.sleep(0.5)  # what was read is being kept


if __name__ == "__main__":
    main()
