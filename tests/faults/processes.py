"""Worker processes that are killed, frozen, ended and replaced, and what was done to which of them when."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from tests.faults.checker import Harm, Usage
from tests.faults.ledger import Execution, executions
from tests.support.waiting import until

__all__ = ["Settings", "Worker", "Workers"]

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("worker.py")
FOREVER = float("inf")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a worker process is told: where the jobs are, how it runs them, and by how much its clock is off."""

    uri: str
    lease: float = 3.0
    workers: int = 4
    drain: float = 5.0
    max_lag: float = 0.1
    timeout: float = 5.0
    max_attempts: int = 0
    max_lost: int | None = None
    skew: float = 0.0
    freeze_at: str = ""


class Worker:
    """One worker process."""

    def __init__(self, folder: Path, name: str, settings: Settings) -> None:
        self._base = folder / name
        self.settings = settings
        told = {**asdict(settings), "folder": str(folder), "name": str(self._base)}
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with self._base.with_suffix(".log").open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": path},
            )
        self.pid = self.process.pid
        self.asked_to_end = False

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    @property
    def ready(self) -> bool:
        return self._base.with_suffix(".ready").exists()

    @property
    def believed(self) -> float:
        """The Unix time that it took it to be when it became ready."""
        return float(self._base.with_suffix(".ready").read_text())

    @property
    def held(self) -> bool:
        """Whether it has stopped itself where it was told to."""
        return self._base.with_suffix(".held").exists()

    @property
    def counts(self) -> dict[str, int]:
        """What the pool counted; known once it has ended in order."""
        counts: dict[str, int] = json.loads(self._base.with_suffix(".counts").read_text())
        return counts

    @property
    def log(self) -> str:
        return self._base.with_suffix(".log").read_text()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def resident(self) -> int:
        """Returns how many bytes of memory it has."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def stalls(self) -> list[Harm]:
        """Returns when the machine did not let it run, and for how long what it held then may have been without it."""
        path = self._base.with_suffix(".stalls")
        lines = path.read_text().splitlines() if path.exists() else []
        spans = [tuple(map(float, line.split())) for line in lines]
        return [Harm("stall", self.pid, at, until + self.settings.lease) for at, until in spans]

    def files(self) -> int:
        """Returns how many files and sockets it has open."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


class Workers:
    """The worker processes of one scenario; all of them are gone when it is closed."""

    def __init__(self, folder: Path, settings: Settings) -> None:
        self._folder = folder
        self.settings = settings
        self.all: list[Worker] = []
        self._done: list[Harm] = []
        self.usage: list[Usage] = []

    @property
    def alive(self) -> list[Worker]:
        return [worker for worker in self.all if worker.alive]

    @property
    def idle_victims(self) -> list[Worker]:
        """The workers that run, and so can be killed to some effect."""
        return [worker for worker in self.alive if worker.ready and not worker.asked_to_end]

    @property
    def harms(self) -> list[Harm]:
        """What was done to the workers, by the scenario and by a machine that is too busy: a freeze is no stall."""
        frozen = {harm.pid: harm.at for harm in reversed(self._done) if harm.kind == "stop"}
        stalls = (stall for worker in self.all for stall in worker.stalls())
        return [*self._done, *(stall for stall in stalls if stall.until < frozen.get(stall.pid, FOREVER))]

    def start(self, count: int = 1, **changes: object) -> list[Worker]:
        """Starts so many workers with the scenario's settings, but for `changes`."""
        settings = Settings(**{**asdict(self.settings), **changes})  # type: ignore[arg-type]
        started = [Worker(self._folder, f"worker-{len(self.all) + number}", settings) for number in range(count)]
        self.all.extend(started)
        return started

    def ready(self, workers: Sequence[Worker], seconds: float = 60) -> Sequence[Worker]:
        """Waits until all of `workers` claim jobs."""
        for worker in workers:
            until(lambda worker=worker: worker.ready or not worker.alive, seconds=seconds, what="a worker is ready")
            assert worker.ready, worker.log
        return workers

    def kill(self, worker: Worker) -> None:
        """Ends a worker by SIGKILL."""
        worker.asked_to_end = True
        moment = time.monotonic()
        worker.process.kill()
        worker.process.wait()
        self._done.append(Harm("kill", worker.pid, moment, FOREVER))

    def kill_any(self, random: Random) -> Worker | None:
        """Kills one of the running workers; None where none runs."""
        victims = self.idle_victims
        if not victims:
            return None
        victim = random.choice(victims)
        self.kill(victim)
        return victim

    def freeze(self, worker: Worker) -> float:
        """Stops a worker by SIGSTOP and returns when that was."""
        moment = time.monotonic()
        worker.signal(signal.SIGSTOP)
        self._done.append(Harm("stop", worker.pid, moment, FOREVER))
        return moment

    def thaw(self, worker: Worker) -> None:
        """Lets a frozen worker go on."""
        worker.signal(signal.SIGCONT)

    def disturbed(self, kind: str, since: float) -> None:
        """Notes that since a moment until now no worker could reach the server."""
        self._done.append(Harm(kind, None, since, time.monotonic()))

    def terminate(self, workers: Iterable[Worker], seconds: float = 30) -> list[int]:
        """Asks workers to end by SIGTERM, and returns their exit codes."""
        asked = list(workers)
        for worker in asked:
            worker.asked_to_end = True
            worker.signal(signal.SIGTERM)
        return [worker.process.wait(seconds) for worker in asked]

    def measure(self) -> None:
        """Notes how much memory, and how many open files, each worker has."""
        for worker in self.idle_victims:
            self.usage.append(Usage(worker.pid, time.monotonic(), worker.resident(), worker.files()))

    def executions(self) -> list[Execution]:
        """Returns what the handlers have written to the ledger."""
        return executions(self._folder)

    def deserters(self) -> list[str]:
        """Returns the logs of workers that have ended unasked."""
        return [worker.log for worker in self.all if not worker.alive and not worker.asked_to_end]

    def close(self) -> None:
        for worker in self.all:
            if worker.alive:
                worker.process.kill()
                worker.process.wait()
