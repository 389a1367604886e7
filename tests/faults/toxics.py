"""What can be wrong with a connection. A toxic sees each command and each reply of a proxy, and each byte it sends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random

from tests.faults.messages import Message, answer_to

__all__ = [
    "STEPPED_DOWN",
    "WRITES",
    "Bandwidth",
    "BlackHole",
    "Broken",
    "Cut",
    "Exchange",
    "Forgotten",
    "Hold",
    "Latency",
    "NotPrimary",
    "Slicer",
    "Toxic",
]

WRITES = frozenset({"insert", "update", "findAndModify", "delete"})
"""The commands by which axeq changes anything: enqueue, claims by batch and settles, single claims, removal."""

STEPPED_DOWN = {10107: "NotWritablePrimary", 189: "PrimarySteppedDown", 91: "ShutdownInProgress"}
"""The errors of a server that is primary no more, by code."""


class Broken(Exception):
    """The connection is to be reset, on both sides."""


@dataclass(slots=True)
class Exchange:
    """A command on its way, on the connection `link`. A `forged` reply is sent in place of the server's."""

    request: Message
    command: str
    link: object
    forged: Message | None = None
    forward: bool = True


class Toxic:
    """The base: it does nothing. `count` says how often a toxic has struck."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def kind(self) -> str:
        """The name of this fault in reports."""
        return type(self).__name__.lower()

    async def request(self, exchange: Exchange) -> None:
        """Sees a command before it reaches the server."""

    async def reply(self, exchange: Exchange) -> None:
        """Sees that the server has carried a command out, before its reply reaches the client."""

    def pieces(self, data: bytes) -> Iterable[bytes]:
        """Returns the segments in which bytes are sent."""
        return [data]

    async def pace(self, size: int) -> None:
        """Waits for as long as a segment of so many bytes takes."""

    def end(self) -> None:
        """Is called in the proxy's loop when the toxic is taken away."""


class _Chosen(Toxic):
    """Strikes commands of the names `commands`, each with probability `rate`, at most `times` in all."""

    def __init__(self, rate: float, commands: Collection[str], random: Random, times: int | None = None) -> None:
        super().__init__()
        self._rate, self._commands, self._random, self._times = rate, frozenset(commands), random, times

    def _strikes(self, exchange: Exchange) -> bool:
        if exchange.command not in self._commands or self.count == self._times or self._random.random() >= self._rate:
            return False
        self.count += 1
        return True


class Cut(_Chosen):
    """Resets the connection in place of a reply: the command was carried out, and its client does not know."""

    async def reply(self, exchange: Exchange) -> None:
        if self._strikes(exchange):
            raise Broken


class NotPrimary(_Chosen):
    """Answers as a server that has just stepped down; the command reaches the server only with `executed`."""

    def __init__(
        self,
        rate: float,
        commands: Collection[str],
        random: Random,
        times: int | None = None,
        *,
        executed: bool = False,
    ) -> None:
        super().__init__(rate, commands, random, times)
        self._executed = executed

    async def request(self, exchange: Exchange) -> None:
        if not self._strikes(exchange):
            return
        code = self._random.choice(list(STEPPED_DOWN))
        refusal = {
            "ok": 0.0,
            "errmsg": "not primary",
            "code": code,
            "codeName": STEPPED_DOWN[code],
            "errorLabels": ["RetryableWriteError"],
        }
        exchange.forged = answer_to(exchange.request, refusal)
        exchange.forward = self._executed


class Latency(Toxic):
    """Adds `seconds`, give or take `jitter`, to each round trip."""

    def __init__(self, seconds: float, jitter: float, random: Random) -> None:
        super().__init__()
        self._seconds, self._jitter, self._random = seconds, jitter, random

    async def request(self, exchange: Exchange) -> None:
        self.count += 1
        await asyncio.sleep(max(self._seconds + self._random.uniform(-self._jitter, self._jitter), 0))


class BlackHole(Toxic):
    """Accepts everything and delivers nothing. Once it ends, what it held goes on its way."""

    def __init__(self) -> None:
        super().__init__()
        self._ended = asyncio.Event()

    async def request(self, exchange: Exchange) -> None:
        self.count += 1
        await self._swallow()

    async def reply(self, exchange: Exchange) -> None:
        await self._swallow()

    def end(self) -> None:
        self._ended.set()

    async def _swallow(self) -> None:
        await self._ended.wait()


class Forgotten(Toxic):
    """Delivers nothing on the connections `links`, for ever, as a firewall does that has lost its memory."""

    def __init__(self, links: Collection[object]) -> None:
        super().__init__()
        self._links = frozenset(links)

    async def request(self, exchange: Exchange) -> None:
        await self._swallow(exchange)

    async def reply(self, exchange: Exchange) -> None:
        await self._swallow(exchange)

    async def _swallow(self, exchange: Exchange) -> None:
        if exchange.link in self._links:
            self.count += 1
            await asyncio.Event().wait()


class Hold(Toxic):
    """Holds the first `command`: before the server sees it, or once it was carried out. `held` is set then."""

    def __init__(self, command: str, *, executed: bool) -> None:
        super().__init__()
        self._command, self._executed = command, executed
        self.held = threading.Event()

    async def request(self, exchange: Exchange) -> None:
        if not self._executed:
            await self._hold(exchange)

    async def reply(self, exchange: Exchange) -> None:
        if self._executed:
            await self._hold(exchange)

    async def _hold(self, exchange: Exchange) -> None:
        if exchange.command == self._command and not self.count:
            self.count += 1
            self.held.set()
            await asyncio.Event().wait()


class Slicer(Toxic):
    """Sends segments of `size` bytes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def pieces(self, data: bytes) -> Iterable[bytes]:
        self.count += 1
        return [data[at : at + self._size] for at in range(0, len(data), self._size)]


class Bandwidth(Toxic):
    """Lets so many bytes a second through a connection."""

    def __init__(self, per_second: int) -> None:
        super().__init__()
        self._per_second = per_second

    async def pace(self, size: int) -> None:
        self.count += 1
        await asyncio.sleep(size / self._per_second)
