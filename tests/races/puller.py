"""A process that pulls jobs for the race tests: `puller URI LEDGER LEASE BATCH`. Prints `ready`.

Every job is written to the ledger when it is handed out and when it has completed. A job that `kills` takes the
process with it.
"""

from __future__ import annotations

import os
import signal
import sys

import axeq
from tests.races.serving import Ledger
from tests.races.worker import Poison


def main() -> None:
    uri, path, lease, batch = sys.argv[1:]
    ledger = Ledger(path)
    with axeq.Store(uri) as store:
        queue = axeq.Queue(store)
        queue.stats()
        print("ready", flush=True)
        for leased in queue.consume(Poison, lease=float(lease), batch=int(batch), max_lost=3):
            ledger.write("poison" if leased.model.kills else "run", leased.job.id)
            if leased.model.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            leased.complete()


if __name__ == "__main__":
    main()
