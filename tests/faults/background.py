"""A thread of the harness that does its work for as long as a test is within its block."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

__all__ = ["Background"]


class Background:
    """Does its `work` in a thread while entered; the work is over once `ending` is set."""

    def __init__(self) -> None:
        self.ending = threading.Event()
        self._thread = threading.Thread(target=self.work, name=f"fault-{type(self).__name__}")

    def work(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.ending.set()
        self._thread.join()
