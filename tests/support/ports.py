"""Ports for servers of tests' own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from axeq.wire import servers

__all__ = ["deaf_port", "free_port"]

# Above those of embedded servers, and below those of outgoing connections, which would occupy one between the look and
# the start of a server, or while it is down.
_FIRST, _EACH, _PARTS = 30_000, 100, 27


def free_port() -> int:
    """Returns a port that is free; test processes that run side by side look for one in different places."""
    first = _FIRST + os.getpid() % _PARTS * _EACH
    for port in range(first, first + _EACH):
        if servers.is_free(port):
            return port
    raise AssertionError("no free port")


@contextmanager
def deaf_port() -> Iterator[int]:
    """Holds a port that nobody answers at, and nobody else can have, while the block lasts."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]
