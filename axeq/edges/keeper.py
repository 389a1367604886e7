"""Keeps the server of one directory: `python -m axeq.edges.keeper PATH`. `embedded` starts it, nobody else need.

It starts the first server that passes the probe, restarts it when it dies, and ends it some seconds after the
last user has left. It returns to its starter once the server is ready, and lives on in a session of its own.
"""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from axeq.wire import servers
from axeq.wire.embedded import Home, Serving, take_lock, write_json
from axeq.words.errors import AxeqError, EmbeddedUnavailable

__all__ = ["Signals", "main"]

LINGER = 2.5
"""Seconds from the last user's leaving to the end of the server."""

TICK = 0.25
STOP_DEADLINE = 10.0
START_DEADLINE = 40.0
ADOPT_DEADLINE = 20.0
PORT_DEADLINE = 2.0
QUICK_DEATH = 10.0
QUICK_DEATHS = 5
LOG_LIMIT = 1 << 20

# Below the ports that systems hand out to outgoing connections, which would occupy a kept one at times.
FIRST_PORT = 20000
PORTS = 10000

_READY = b"1"
_FAILED = b"0"

_log = logging.getLogger("axeq.keeper")


def main(arguments: list[str] | None = None) -> int:
    """Keeps the server of the one path given. Returns 0 once it is ready, or when another keeper has it."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    home = Home(Path(path).absolute())
    # Users who look whether there is a keeper hold this lock for a moment. A keeper holds it until it ends.
    if take_lock(home.keeper_lock, exclusive=True, timeout=0.5) is None:
        return 0
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        # No word at all means that the keeper was killed: the starter's user looks again, and starts another.
        return 1 if os.read(reader, 1) == _FAILED else 0
    os.close(reader)
    return _keep(home, lambda word: _report(writer, word))


class Signals:
    """SIGTERM, SIGINT and the death of a child, as something to wait for. Only in the main thread."""

    def __init__(self) -> None:
        self.stopped = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._reader.setblocking(False)

    def __enter__(self) -> Self:
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for a signal or `timeout` seconds (default: for ever). Returns whether it is time to stop."""
        if not self.stopped and select.select([self._reader], [], [], timeout)[0]:
            self._reader.recv(4096)
        return self.stopped

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.stopped = self.stopped or number != signal.SIGCHLD


class _Server:
    """A server process: a child of this keeper, or one that a killed keeper left."""

    def __init__(self, serving: Serving, child: subprocess.Popen[bytes] | None) -> None:
        self.serving = serving
        self.since = time.monotonic()
        self._child = child

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        return servers.is_running(self.serving.pid, Path(self.serving.data))

    def stop(self) -> None:
        """Ends the process: SIGTERM, and SIGKILL after a deadline."""
        for number, deadline in ((signal.SIGTERM, STOP_DEADLINE), (signal.SIGKILL, STOP_DEADLINE)):
            if not self.alive():
                return
            with suppress(ProcessLookupError):
                os.kill(self.serving.pid, number)
            self._wait(deadline)
        if self.alive():
            _log.warning("server %d does not end", self.serving.pid)

    def _wait(self, deadline: float) -> None:
        if self._child is not None:
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(deadline)
            return
        # Nothing signals the end of a process that is no child.
        until = time.monotonic() + deadline
        while self.alive() and time.monotonic() < until:
            time.sleep(0.02)


class _Keeper:
    def __init__(self, home: Home, signals: Signals) -> None:
        self._home = home
        self._signals = signals
        self._idle_since: float | None = None
        self._quick_deaths = 0

    def run(self, on_ready: Callable[[], None]) -> None:
        server = self._adopt() or self._start()
        on_ready()
        users_lock: int | None = None
        try:
            # Who removes the directory has no use for the server any more.
            while users_lock is None and self._home.path.exists() and not self._signals.wait(TICK):
                if not server.alive():
                    server = self._restart(server)
                users_lock = self._lock_when_idle()
        finally:
            # Held until the server is gone: who comes now waits, and finds no server rather than a dying one.
            self._end(server)

    def _lock_when_idle(self) -> int | None:
        """Returns the users' lock, taken alone, when there has been no user for a while."""
        try:
            users_lock = take_lock(self._home.users_lock, exclusive=True, timeout=0)
        except FileNotFoundError:
            return None  # the directory is gone: `run` sees it
        if users_lock is None:
            self._idle_since = None
            return None
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        if now - self._idle_since >= LINGER:
            return users_lock
        os.close(users_lock)
        return None

    def _adopt(self) -> _Server | None:
        """Takes over the server that a killed keeper left, or ends it when it does not answer."""
        serving = self._home.serving()
        if serving is None:
            return None
        server = _Server(serving, None)
        if server.alive():
            if serving.ready and self._answers(server):
                server.serving = replace(serving, keeper=os.getpid())
                self._home.announce(server.serving)
                _log.info("took over server %d on port %d", serving.pid, serving.port)
                return server
            server.stop()
        self._home.announce(None)
        return None

    def _answers(self, server: _Server) -> bool:
        """Whether a server answers while it runs: a busy one may not at the first time."""
        until = time.monotonic() + ADOPT_DEADLINE
        while servers.answer(server.serving.port) is None:
            if not server.alive() or time.monotonic() >= until or self._signals.wait(TICK):
                return False
        return True

    def _restart(self, dead: _Server) -> _Server:
        _log.warning("server %d has died", dead.serving.pid)
        self._home.announce(None)
        quick = time.monotonic() - dead.since < QUICK_DEATH
        self._quick_deaths = self._quick_deaths + 1 if quick else 0
        if self._quick_deaths >= QUICK_DEATHS:
            raise EmbeddedUnavailable(
                f"the server of embedded:{self._home.path} died {QUICK_DEATHS} times, each within "
                f"{QUICK_DEATH:g} s of its start: see {self._home.server_log}"
            )
        return self._start()

    def _end(self, server: _Server) -> None:
        with suppress(FileNotFoundError):
            self._home.announce(replace(server.serving, ready=False))
        server.stop()
        with suppress(FileNotFoundError):
            self._home.announce(None)
        _log.info("ended server %d", server.serving.pid)

    def _start(self) -> _Server:
        self._home.config.write_text("")
        kept = _kept(self._home)
        tried: list[str] = []
        for program in servers.find():
            if kept.kind not in (None, program.kind):
                tried.append(f"{program.name} cannot read its data, written by {kept.kind}")
                continue
            try:
                return self._start_program(program, kept)
            except AxeqError as error:
                tried.append(f"{program.name} {error}")
                _log.warning("passed over: %s", tried[-1])
            if self._signals.stopped:
                raise EmbeddedUnavailable(f"the keeper of embedded:{self._home.path} was told to end")
        raise servers.unavailable(self._home.path, tried)

    def _start_program(self, program: servers.Program, kept: _Kept) -> _Server:
        port = kept.port if kept.port and _becomes_free(kept.port) else _choose_port(self._home.path)
        server = self._spawn(program, port)
        try:
            server.serving = replace(server.serving, uri=self._check(program, server), ready=True)
            write_json(self._home.kept, asdict(_Kept(port, program.kind)))
            self._home.announce(server.serving)
        except BaseException:
            server.stop()
            self._home.announce(None)
            if kept.kind is None:
                shutil.rmtree(server.serving.data, ignore_errors=True)
            raise
        _log.info("started %s as %d on port %d", program.name, server.serving.pid, port)
        return server

    def _spawn(self, program: servers.Program, port: int) -> _Server:
        data = self._home.data(program.kind)
        data.mkdir(mode=0o700, exist_ok=True)
        with self._home.server_log.open("ab") as log:
            if log.tell() > LOG_LIMIT:
                log.truncate(0)
            child = subprocess.Popen(  # noqa: S603 - a program that `servers` found
                program.arguments(port=port, data=data, config=self._home.config),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._home.path,
                env=servers.environment(),
                start_new_session=True,
            )
        serving = Serving(port, child.pid, str(data), program.name, uri="", keeper=os.getpid(), ready=False)
        # Before it is ready, so that another keeper finds the process when this one is killed meanwhile.
        self._home.announce(serving)
        return _Server(serving, child)

    def _check(self, program: servers.Program, server: _Server) -> str:
        """Waits until the server answers, probes it, and returns its URI."""
        port = server.serving.port
        hello = servers.wait_for_answer(
            program, port, alive=lambda: server.alive() and not self._signals.stopped, timeout=START_DEADLINE
        )
        if hello is None:
            raise EmbeddedUnavailable(f"did not start (see {self._home.server_log})")
        uri = servers.announce(port, hello)
        if missing := servers.lacking(uri):
            raise EmbeddedUnavailable(f"lacks {', '.join(missing)}")
        return uri


@dataclass(frozen=True, slots=True)
class _Kept:
    """What stays with a path: the port, and the kind of server that wrote the data."""

    port: int | None = None
    kind: str | None = None


def _kept(home: Home) -> _Kept:
    try:
        return _Kept(**json.loads(home.kept.read_bytes()))
    except FileNotFoundError:
        return _Kept()


def _becomes_free(port: int) -> bool:
    """Whether `port` is free, or becomes so: a killed process holds what it had for a moment longer."""
    until = time.monotonic() + PORT_DEADLINE
    while not servers.is_free(port):
        if time.monotonic() >= until:
            return False
        time.sleep(0.02)
    return True


def _choose_port(path: Path) -> int:
    first = zlib.crc32(os.fsencode(path)) % PORTS
    for step in range(PORTS):
        port = FIRST_PORT + (first + step) % PORTS
        if servers.is_free(port):
            return port
    raise EmbeddedUnavailable(f"no free port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1}")


def _keep(home: Home, report: Callable[[bytes], None]) -> int:
    try:
        _log_to_standard_error()
        with Signals() as signals:
            _Keeper(home, signals).run(on_ready=lambda: report(_READY))
    except BaseException as error:  # noqa: BLE001 - whatever it was, the starter is told
        # The last line of the log is what the users are told.
        if not isinstance(error, AxeqError):
            traceback.print_exc()
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        report(_FAILED)
        return 1
    return 0


def _log_to_standard_error() -> None:
    if os.fstat(sys.stderr.fileno()).st_size > LOG_LIMIT:
        os.ftruncate(sys.stderr.fileno(), 0)
    logging.basicConfig(format="%(asctime)s %(message)s")
    _log.setLevel(logging.INFO)


def _report(writer: int, word: bytes) -> None:
    # The starter has ended after the first word, or was killed.
    with suppress(BrokenPipeError):
        os.write(writer, word)


if __name__ == "__main__":
    sys.exit(main())
