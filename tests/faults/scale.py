"""How large a scenario is: `AXEQ_FULL=1` runs what the catalogue asks for, else what a minute allows."""

from __future__ import annotations

import os

from axeq.wire import servers
from axeq.words.errors import EmbeddedUnavailable

__all__ = ["FULL", "SLOW", "own_server_is_slow", "size"]

FULL = os.environ.get("AXEQ_FULL") == "1"


def own_server_is_slow() -> bool:
    """Returns whether a server that a scenario starts for itself is the one in Python."""
    try:
        return servers.find()[0].kind is servers.Kind.SECANTUS
    except (EmbeddedUnavailable, IndexError):
        return False  # the tests' own server says so, and why


SLOW = not os.environ.get("AXEQ_TEST_URI") and own_server_is_slow()
"""Whether the tests' server is the one in Python, whose single claims scan the collection."""


def size(small: int, *, full: int, slow: int | None = None) -> int:
    """Returns how many: `full` where everything is asked for, else `small`, or `slow` on the slow server."""
    if FULL:
        return full
    return slow if SLOW and slow is not None else small
