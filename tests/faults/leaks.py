"""What a scenario may not leave behind: processes, threads, sockets."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Belongings"]


@dataclass(frozen=True, slots=True)
class Belongings:
    """What this process has: children, threads, and sockets by their inode."""

    children: frozenset[int]
    threads: frozenset[threading.Thread]
    sockets: frozenset[str]

    @classmethod
    def now(cls) -> Belongings:
        return cls(_children(), _threads(), _sockets())

    def since(self, before: Belongings) -> list[str]:
        """Returns in words what there is now that was not there before."""
        return [
            *(f"process {pid}: {_command(pid)}" for pid in self.children - before.children),
            *(f"thread {thread.name}" for thread in self.threads - before.threads if thread.is_alive()),
            *(f"an open {each}" for each in self.sockets - before.sockets),
        ]


def _children() -> frozenset[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(entry) == os.getpid():
            found.add(int(entry.name))
    return frozenset(found)


def _threads() -> frozenset[threading.Thread]:
    """Returns all threads but those in which an event loop runs what blocks: it keeps a few, and ends them itself."""
    return frozenset(thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_"))


def _parent(process: Path) -> int | None:
    try:
        text = (process / "stat").read_text()
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[1])


def _sockets() -> frozenset[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith("socket:"):
            found.add(target)
    return frozenset(found)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:120]
    except OSError:
        return "gone"
