"""A server that belongs to a directory: `open_embedded(path)` uses it, a keeper process runs it.

Nobody owns the server. Each user holds a shared lock on `users.lock`; the keeper ends the server when it
can take that lock alone, and holds it until the server is gone. A user takes its lock first and looks for a
keeper then, so it finds either a server that stays or none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from axeq.wire import servers
from axeq.words.errors import EmbeddedUnavailable

__all__ = ["Embedded", "Home", "Serving", "open_embedded", "take_lock", "unlock", "write_json"]

_START_DEADLINE = 60.0
_POLL = 0.03


@dataclass(frozen=True, slots=True)
class Serving:
    """What `server.json` says: which server serves, whether it is `ready`, and which process keeps it."""

    port: int
    pid: int
    data: str
    program: str
    uri: str
    keeper: int
    ready: bool


@dataclass(frozen=True, slots=True)
class Home:
    """The files of an embedded server, all under `path`."""

    path: Path

    @property
    def users_lock(self) -> Path:
        return self.path / "users.lock"

    @property
    def keeper_lock(self) -> Path:
        return self.path / "keeper.lock"

    @property
    def keeper_log(self) -> Path:
        return self.path / "keeper.log"

    @property
    def server_log(self) -> Path:
        return self.path / "server.log"

    @property
    def config(self) -> Path:
        return self.path / "server.conf"

    @property
    def kept(self) -> Path:
        return self.path / "kept.json"

    def data(self, kind: servers.Kind) -> Path:
        """Returns where servers of `kind` keep their files; one kind cannot read another's."""
        return self.path / kind.value

    def serving(self) -> Serving | None:
        """Returns what `server.json` says, or None when there is none."""
        try:
            return Serving(**json.loads(self._server_json.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def announce(self, serving: Serving | None) -> None:
        """Replaces `server.json` in one step, or removes it."""
        if serving is None:
            self._server_json.unlink(missing_ok=True)
        else:
            write_json(self._server_json, asdict(serving))

    @property
    def _server_json(self) -> Path:
        return self.path / "server.json"


class Embedded:
    """A hold on the server of a directory: it runs at least until `close()`, or until this process has ended.

    Thread-safe. A process made by `os.fork` shares the hold of its parent, and gets one of its own when it
    first reads `uri`. Attributes: `path`, and `server`, the program's name for humans.
    """

    def __init__(self, path: Path, users_lock: int, serving: Serving) -> None:
        self.path = path
        self.server = serving.program
        self._uri = serving.uri
        self._descriptor: int | None = users_lock
        self._process = os.getpid()
        self._mutex = threading.Lock()

    @property
    def uri(self) -> str:
        """The URI for drivers, without a database: `mongodb://127.0.0.1:PORT/?...`."""
        with self._mutex:
            if self._descriptor is not None and self._process != os.getpid():
                self._take_own(self._descriptor)
            return self._uri

    def close(self) -> None:
        """Gives the hold up. The server ends some seconds after the last one. May be called twice."""
        with self._mutex:
            descriptor, self._descriptor = self._descriptor, None
            if descriptor is None:
                return
            if self._process == os.getpid():
                # Children forked meanwhile share this lock: without this they would hold it until they end.
                unlock(descriptor)
            os.close(descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Embedded({str(self.path)!r}, uri={self._uri!r}, server={self.server!r})"

    def _take_own(self, inherited: int) -> None:
        self._descriptor, serving = _join(Home(self.path))
        self._process = os.getpid()
        self._uri = serving.uri
        os.close(inherited)


def open_embedded(path: str | os.PathLike[str]) -> Embedded:
    """Returns a hold on the server of directory `path`, made (0700) and started when need be.

    Waits up to 60 s for the server. Raises `EmbeddedUnavailable` when no server program fits.
    """
    home = Home(Path(path).expanduser().absolute())
    if os.name != "posix":
        raise EmbeddedUnavailable("embedded servers need POSIX file locks: give the URI of a MongoDB instead")
    try:
        home.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        users_lock, serving = _join(home)
    except OSError as error:
        raise EmbeddedUnavailable(f"embedded:{home.path} cannot be used: {error}") from error
    return Embedded(home.path, users_lock, serving)


def take_lock(path: Path, *, exclusive: bool, timeout: float) -> int | None:
    """Returns a descriptor that holds the lock on file `path`, or None when it cannot be had in `timeout` s.

    The lock ends with the last copy of the descriptor; programs that are executed do not inherit it.
    """
    import fcntl

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                return None
            time.sleep(_POLL)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return descriptor


def unlock(descriptor: int) -> None:
    """Frees the lock of `descriptor` for every process that shares it."""
    import fcntl

    fcntl.flock(descriptor, fcntl.LOCK_UN)


def write_json(path: Path, content: object) -> None:
    """Writes `content` so that a reader sees the old file or the whole new one."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(content))
    draft.replace(path)


def _join(home: Home) -> tuple[int, Serving]:
    until = time.monotonic() + _START_DEADLINE
    users_lock = take_lock(home.users_lock, exclusive=False, timeout=_START_DEADLINE)
    if users_lock is None:
        raise EmbeddedUnavailable(f"the server of embedded:{home.path} does not end: see {home.keeper_log}")
    try:
        return users_lock, _wait_for_server(home, until)
    except BaseException:
        os.close(users_lock)
        raise


def _wait_for_server(home: Home, until: float) -> Serving:
    while time.monotonic() < until:
        if not _is_kept(home):
            _start_keeper(home, until - time.monotonic())
        serving = home.serving()
        if serving and _serves(serving):
            return serving
        time.sleep(_POLL)
    raise EmbeddedUnavailable(
        f"no server for embedded:{home.path} within {_START_DEADLINE:g} s: see {home.keeper_log} and {home.server_log}"
    )


def _serves(serving: Serving) -> bool:
    # A keeper that was killed may have left the file of a server whose port is another's by now.
    return (
        serving.ready
        and servers.is_running(serving.pid, Path(serving.data))
        and servers.answer(serving.port) is not None
    )


def _is_kept(home: Home) -> bool:
    # A shared lock, so that users who look at the same time do not take each other for a keeper.
    probe = take_lock(home.keeper_lock, exclusive=False, timeout=0)
    if probe is None:
        return True
    os.close(probe)
    return False


def _start_keeper(home: Home, timeout: float) -> None:
    """Starts a keeper, which returns once its server is ready, or at once when another keeper was first."""
    with home.keeper_log.open("ab") as log:
        starter = subprocess.Popen(  # noqa: S603 - this Python, and a path as one argument
            [sys.executable, "-P", "-m", "axeq.edges.keeper", str(home.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=home.path,
            env=_environment(),
            start_new_session=True,
        )
    try:
        failed = starter.wait(max(timeout, 1.0)) != 0
    except subprocess.TimeoutExpired:
        starter.kill()
        starter.wait()
        return
    if failed:
        raise EmbeddedUnavailable(_last_line(home.keeper_log))


def _environment() -> dict[str, str]:
    # The keeper outlives this process, and has no use for the credentials of its database.
    environment = {name: value for name, value in os.environ.items() if name != "AXEQ_URI"}
    package_parent = str(Path(__file__).resolve().parent.parent)
    if package_parent not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        # Run from a checkout, the package is found by the working directory, which the keeper does not share.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package_parent, environment.get("PYTHONPATH")]))
    return environment


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else f"the keeper failed without a word: see {log}"
