"""Which client a store uses where: one sync per process, one async per running loop, none across a fork."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from pymongo.asynchronous.mongo_client import AsyncMongoClient
from pymongo.driver_info import DriverInfo
from pymongo.synchronous.mongo_client import MongoClient

from axeq.wire.lock import ProcessLock

__all__ = ["Clients", "forget_ended", "host_of", "transport"]

_LOOPBACK = ("localhost", "127.0.0.1", "::1")

C = TypeVar("C", MongoClient[Any], AsyncMongoClient[Any])


class Clients:
    """Opens clients by need, all from the same constructor arguments.

    `given` is a client that the user opened: it is used only in the process, and if async only on the loop,
    where the store was made; anywhere else a client of our own with its constructor arguments stands in.
    """

    def __init__(
        self,
        arguments: Mapping[str, Any],
        *,
        given: MongoClient[Any] | AsyncMongoClient[Any] | None = None,
    ) -> None:
        self._arguments = dict(arguments)
        self._arguments.setdefault("driver", DriverInfo("axeq", _version()))
        self._given = given
        self._home = (os.getpid(), _running_loop())
        self._lock = ProcessLock()
        self._sync: tuple[int, MongoClient[Any]] | None = None
        self._asyncs: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncMongoClient[Any]] = WeakKeyDictionary()

    def sync(self) -> MongoClient[Any]:
        """Returns this process's sync client."""
        process = os.getpid()
        if isinstance(self._given, MongoClient) and process == self._home[0]:
            return self._given
        with self._lock:
            if self._sync is None or self._sync[0] != process:
                self._sync = (process, self._open(MongoClient))
            return self._sync[1]

    def spare(self) -> MongoClient[Any]:
        """Returns a new sync client, for a thread that must not wait for others' connections; its user closes
        it.
        """
        return self._open(MongoClient)

    def asynchronous(self) -> AsyncMongoClient[Any]:
        """Returns the running loop's async client."""
        loop = asyncio.get_running_loop()
        if isinstance(self._given, AsyncMongoClient) and (os.getpid(), loop) == self._home:
            return self._given
        client = self._asyncs.get(loop)
        if client is None:
            forget_ended(self._asyncs)
            client = self._asyncs[loop] = self._open(AsyncMongoClient)
        return client

    def close(self) -> None:
        """Closes the sync clients that axeq opened, and drops those of loops that have ended; a given client stays
        open.
        """
        forget_ended(self._asyncs)
        with self._lock:
            opened, self._sync = self._sync, None
        if opened is not None and opened[0] == os.getpid():
            opened[1].close()

    async def aclose(self) -> None:
        """Closes the running loop's client that axeq opened; a given client stays open."""
        client = self._asyncs.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.close()

    def _open(self, kind: type[C]) -> C:
        return kind(**self._arguments)


def forget_ended(by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, Any]) -> None:
    """Drops what was kept for event loops that are closed: an async client holds its loop, so neither would ever go,
    nor the client's connections.
    """
    for reference in by_loop.keyrefs():  # a copy, for loops of other threads come and go
        loop = reference()
        if loop is not None and loop.is_closed():
            by_loop.pop(loop, None)


def host_of(arguments: Mapping[str, Any]) -> str:
    """Returns the server's address in a client's constructor arguments, without credentials."""
    host = arguments.get("host") or "localhost"
    if not isinstance(host, str):
        return ",".join(str(part).rpartition("@")[2] for part in host)
    authority = host.partition("://")[2] or host
    return authority.split("/")[0].rpartition("@")[2].split("?")[0]


def transport(client: MongoClient[Any]) -> str | None:
    """Returns what is wrong with how a client reaches its server; None where the way is encrypted and checked, or
    does not leave this machine.
    """
    options = client.options.pool_options
    context = options._ssl_context  # the driver's own; it names no public one
    if context is None:
        hosts = [host for host, _ in client.topology_description.server_descriptions()]
        local = all(host in _LOOPBACK or host.startswith("/") for host in hosts)
        return None if local else "not encrypted: use tls=true"
    if context.verify_mode == ssl.CERT_NONE:
        return "the server's certificate is not checked: drop tlsAllowInvalidCertificates and tlsInsecure"
    if options.tls_allow_invalid_hostnames:
        return "the server's name is not checked: drop tlsAllowInvalidHostnames and tlsInsecure"
    return None


def _version() -> str:
    from importlib.metadata import version  # it takes longer to import than most of axeq

    return version("axeq")


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
