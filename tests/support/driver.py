"""A mend of the driver while tests run, so that whatever is left open is axeq's doing."""

from __future__ import annotations

import socket
import traceback
from typing import Any

from pymongo import pool_shared

__all__ = ["connect_or_close"]

_connect = pool_shared._async_create_connection


async def connect_or_close(address: Any, options: Any) -> socket.socket:
    """Connects as the driver does, but closes the socket where a cancellation or the client's close comes between.

    The driver leaves it to the garbage collector (PYTHON-5867), which complains in whatever test runs at that moment.
    """
    try:
        return await _connect(address, options)
    except BaseException as error:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code is _connect.__code__ and "sock" in frame.f_locals:
                frame.f_locals["sock"].close()
        raise
