"""A server of a scenario's own, which may be killed and started again on the same data and port."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from axeq.wire import servers
from tests.support.ports import free_port

__all__ = ["OwnServer"]

_START_DEADLINE = 120.0


class OwnServer:
    """The first server program of this machine, on loopback, with durable commits, while entered."""

    def __init__(self, folder: Path) -> None:
        self.program = servers.find()[0]
        self._data = folder / "data"
        self._config = folder / "server.conf"
        self._log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.uri = ""
        self.downtimes: list[tuple[float, float]] = []
        """When it was killed, and when it answered again (monotonic)."""

    def __enter__(self) -> Self:
        self._data.mkdir(parents=True)
        self._config.write_text("")
        self._port = free_port()
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> float:
        """Kills it and starts it again; returns the moment from which on it answers."""
        killed = time.monotonic()
        self.kill()
        self._start()
        self.downtimes.append((killed, time.monotonic()))
        return self.downtimes[-1][1]

    def _start(self) -> None:
        arguments = self.program.arguments(port=self._port, data=self._data, config=self._config)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._data.parent,
                env=servers.environment(),
            )
        process = self._process
        hello = servers.wait_for_answer(
            self.program, self._port, alive=lambda: process.poll() is None, timeout=_START_DEADLINE
        )
        assert hello is not None, f"{self.program.name} does not start: {self._log.read_text()}"
        self.uri = servers.announce(self._port, hello)
