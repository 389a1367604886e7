"""Processes of their own for what is measured: a parent asks in lines of JSON, a child answers each with one."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Child", "children"]

_LONGEST_ANSWER = 180.0


class Child:
    """A program beside this file, run by the same Python. It ends when its standard input does."""

    def __init__(self, program: str) -> None:
        command = [sys.executable, str(Path(__file__).parent / program)]
        self.program = program
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def tell(self, **request: Any) -> None:
        """Sends a request."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Returns the next answer. Raises `RuntimeError` where the child has ended, or does not answer."""
        assert self._process.stdout is not None
        alarm = threading.Timer(_LONGEST_ANSWER, self._process.kill)
        alarm.start()
        try:
            line = self._process.stdout.readline()
        finally:
            alarm.cancel()
        if not line:
            raise RuntimeError(f"{self.program} ended without an answer, code {self._process.wait()}: see above")
        return json.loads(line)

    def ask(self, **request: Any) -> Any:
        """Sends a request and returns its answer."""
        self.tell(**request)
        return self.hear()

    def end(self) -> None:
        """Ends the child: by itself if it can, else by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()


@contextmanager
def children(program: str, count: int = 1) -> Iterator[list[Child]]:
    """Yields `count` children and ends them, come what may."""
    started: list[Child] = []
    try:
        for _ in range(count):
            started.append(Child(program))  # noqa: PERF401 - those that did start must end
        yield started
    finally:
        for child in started:
            child.end()
