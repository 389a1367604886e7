"""A TCP proxy between axeq and its server that can do whatever a network can: see `toxics`."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit, urlunsplit

from tests.faults.messages import HELLOS, read_message
from tests.faults.toxics import Broken, Exchange, Toxic

__all__ = ["Proxy"]

X = TypeVar("X", bound=Toxic)

LOOPBACK = "127.0.0.1"
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
_ENDED = (Broken, ConnectionError, asyncio.IncompleteReadError, OSError)


class Proxy:
    """Forwards connections to the server of `uri` while entered, in a thread of its own, through its toxics.

    It names itself where the server's greeting names the server, so that drivers stay with it whatever their URI says.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        assert parts.hostname is not None
        assert parts.port is not None
        self._uri = parts
        self._upstream = (parts.hostname, parts.port)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._toxics: tuple[Toxic, ...] = ()
        self._links: dict[_Link, asyncio.Task[None]] = {}
        self.port = 0
        self.injected: Counter[str] = Counter()
        """How often each kind of fault has struck, of toxics that are gone, and of resets."""
        self.commands: Counter[str] = Counter()
        """How many commands of each name have come in."""

    @property
    def toxics(self) -> tuple[Toxic, ...]:
        return self._toxics

    @property
    def links(self) -> tuple[object, ...]:
        """The connections that are open now."""
        return tuple(self._links)

    def uri(self, database: str = "") -> str:
        """Returns the URI of the same server by way of this proxy."""
        return urlunsplit(self._uri._replace(netloc=f"{LOOPBACK}:{self.port}", path=f"/{database}"))

    def add(self, toxic: X) -> X:
        """Has a toxic strike from now on, and returns it."""
        self._toxics = (*self._toxics, toxic)
        return toxic

    def remove(self, toxic: Toxic) -> None:
        """Takes a toxic away."""
        self._toxics = tuple(other for other in self._toxics if other is not toxic)
        self.injected[toxic.kind] += toxic.count
        self._loop.call_soon_threadsafe(toxic.end)

    @contextmanager
    def toxic(self, toxic: X) -> Iterator[X]:
        """Has a toxic strike while the block lasts."""
        self.add(toxic)
        try:
            yield toxic
        finally:
            self.remove(toxic)

    def reset(self) -> int:
        """Resets every connection, as a firewall does, and returns how many there were."""
        count = self._in_loop(self._reset())
        self.injected["reset"] += count
        return count

    def faults(self) -> Counter[str]:
        """Returns how often each kind of fault has struck so far."""
        return self.injected + Counter({toxic.kind: toxic.count for toxic in self._toxics})

    def __enter__(self) -> Self:
        started = threading.Event()
        self._loop.call_soon(started.set)
        self._thread.start()
        assert started.wait(10)
        self._server = self._in_loop(asyncio.start_server(self._connected, LOOPBACK, 0))
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._in_loop(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _in_loop(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self, reader, writer)
        task = asyncio.current_task()
        assert task is not None
        self._links[link] = task
        try:
            await link.run(self._upstream)
        finally:
            del self._links[link]

    async def _reset(self) -> int:
        tasks = list(self._links.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        return len(tasks)

    async def _close(self) -> None:
        self._server.close()
        await self._reset()
        await self._server.wait_closed()


class _Link:
    """One connection of a client, and the one to the server that stands behind it."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._from_client, self._to_client = reader, writer
        self._last: Exchange | None = None

    async def run(self, upstream: tuple[str, int]) -> None:
        to_server: asyncio.StreamWriter | None = None
        try:
            self._upstream = upstream
            from_server, to_server = await asyncio.open_connection(*upstream)
            pumps = [
                asyncio.create_task(self._requests(to_server)),
                asyncio.create_task(self._replies(from_server)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await _ended(pumps)
        except (OSError, asyncio.CancelledError):
            pass  # reset from outside, or the server is down
        finally:
            _abort(self._to_client)
            if to_server is not None:
                _abort(to_server)

    async def _requests(self, to_server: asyncio.StreamWriter) -> None:
        while True:
            request = await read_message(self._from_client)
            exchange = self._last = Exchange(request, request.command, self)
            self._proxy.commands[exchange.command] += 1
            for toxic in self._proxy.toxics:
                await toxic.request(exchange)
            if exchange.forward:
                await self._send(to_server, request.data)
            elif exchange.forged is not None:
                await self._send(self._to_client, exchange.forged.data)

    async def _replies(self, from_server: asyncio.StreamReader) -> None:
        while True:
            reply = await read_message(from_server)
            exchange = self._last
            assert exchange is not None, "a server does not speak first"
            for toxic in self._proxy.toxics:
                await toxic.reply(exchange)
            if exchange.command in HELLOS:
                reply = reply.with_document(self._renamed(reply.document))
            await self._send(self._to_client, (exchange.forged or reply).data)

    async def _send(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        toxics = self._proxy.toxics
        pieces = [data]
        for toxic in toxics:
            pieces = [part for piece in pieces for part in toxic.pieces(piece)]
        for piece in pieces:
            for toxic in toxics:
                await toxic.pace(len(piece))
            writer.write(piece)
            await writer.drain()

    def _renamed(self, greeting: dict[str, Any]) -> dict[str, Any]:
        """Returns the server's greeting with this proxy's address for the server's own.

        Without a topology version, so that drivers ask for greetings and do not wait for them to be pushed: a server
        that has not really stepped down would push none, and a driver would wait for ten seconds.
        """
        ours = f"{LOOPBACK}:{self._proxy.port}"
        theirs = f":{self._upstream[1]}"

        def rename(address: str) -> str:
            return ours if address.endswith(theirs) else address

        names = {key: rename(greeting[key]) for key in ("me", "primary") if key in greeting}
        lists = {key: [rename(each) for each in greeting[key]] for key in ("hosts", "passives") if key in greeting}
        plain = {key: value for key, value in greeting.items() if key != "topologyVersion"}
        return {**plain, **names, **lists}


async def _ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, BaseException) and not isinstance(outcome, (*_ENDED, asyncio.CancelledError)):
            raise outcome


def _abort(writer: asyncio.StreamWriter) -> None:
    """Resets a connection: the other side sees RST, not an orderly end."""
    connection = writer.get_extra_info("socket")
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    writer.transport.abort()
