"""Which MongoDB-compatible server programs this machine has, how each is started and asked; starts none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pymongo
from pymongo.errors import OperationFailure, PyMongoError

from axeq.wire.capabilities import Capabilities, probe
from axeq.words.errors import EmbeddedUnavailable

__all__ = [
    "LOOPBACK",
    "Kind",
    "Program",
    "announce",
    "answer",
    "environment",
    "find",
    "is_free",
    "is_running",
    "lacking",
    "unavailable",
    "wait_for_answer",
]

LOOPBACK = "127.0.0.1"
REPLICA_SET = "axeq"
CORRECT = "correct it, or unset it and `pip install 'axeq[embedded]'`"
MEND = "`pip install 'axeq[embedded]'`, or set AXEQ_MONGOD to a server program"

_POLL = 0.05
_NOT_YET_INITIALIZED = 94


class Kind(StrEnum):
    """The families of server. The files of one cannot be read by another."""

    MONGOD = "mongod"
    SECANTUSD = "secantusd"
    SECANTUS = "secantus"


@dataclass(frozen=True, slots=True)
class Program:
    """A server program: its `kind`, the `command` that starts it, and its `name` for humans."""

    kind: Kind
    command: tuple[str, ...]
    name: str

    def arguments(self, *, port: int, data: Path, config: Path) -> list[str]:
        """Returns the whole command line: on loopback, with durable commits, reading no other configuration.

        `config` is an empty file that keeps the SecantusDB servers from looking for one. mongod looks for
        none, and has a majority write in its journal before it is acknowledged.
        """
        if self.kind is Kind.MONGOD:
            options = [
                "--dbpath",
                str(data),
                "--bind_ip",
                LOOPBACK,
                "--port",
                str(port),
                "--replSet",
                REPLICA_SET,
            ]
            return [*self.command, *options, "--nounixsocket", "--quiet"]
        options = [
            "--config",
            str(config),
            "--host",
            LOOPBACK,
            "--port",
            str(port),
            "--storage-path",
            str(data),
        ]
        return [*self.command, *options, "--sync-on-commit", "--log-level", "WARNING"]


def find(environ: Mapping[str, str] = os.environ) -> list[Program]:
    """Returns the server programs of this machine, the preferred first; none found is an empty list.

    Order: `$AXEQ_MONGOD`, `mongod`, `secantusd-rs` and `secantusd-mdb` on PATH, the SecantusDB package.
    Raises `EmbeddedUnavailable` when `$AXEQ_MONGOD` names no server program.
    """
    found: list[Program] = []
    if chosen := environ.get("AXEQ_MONGOD"):
        found.append(_chosen(chosen))
    searched = environ.get("PATH", os.defpath)
    on_path = (shutil.which(name, path=searched) for name in ("mongod", "secantusd-rs", "secantusd-mdb"))
    found.extend(_program(where) for where in on_path if where)
    if importlib.util.find_spec("secantus"):
        # -P keeps a `secantus` in the working directory from being taken for the package.
        found.append(Program(Kind.SECANTUS, (sys.executable, "-P", "-m", "secantus"), "SecantusDB package"))
    return list(dict.fromkeys(found))


def unavailable(path: Path, tried: list[str]) -> EmbeddedUnavailable:
    """Returns the error for a `path` that has no server; `tried` says why, one text per program."""
    if tried:
        return EmbeddedUnavailable(f"no usable server for embedded:{path}: {'; '.join(tried)}: {MEND}")
    return EmbeddedUnavailable(
        f"no server for embedded:{path}: AXEQ_MONGOD is not set, mongod, secantusd-rs and secantusd-mdb are "
        f"not on PATH, and the SecantusDB package is not installed: {MEND}"
    )


def environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the environment for a server: this one without what would configure it, or names another database."""
    return {name: value for name, value in environ.items() if not name.startswith("SECANTUS") and name != "AXEQ_URI"}


def is_free(port: int) -> bool:
    """Whether a server could listen on `port` of the loopback address now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def is_running(pid: int, data: Path) -> bool:
    """Whether process `pid` is a server over `data`, and not a stranger with its number, nor a zombie."""
    arguments = Path(f"/proc/{pid}/cmdline")
    if Path("/proc/self/cmdline").exists():
        try:
            return os.fsencode(data) in arguments.read_bytes().split(b"\0")
        except OSError:
            return False
    try:
        listing = subprocess.run(  # noqa: S603 - fixed words and a number
            ["ps", "-ww", "-o", "command=", "-p", str(pid)],  # noqa: S607 - where it lies differs by system
            capture_output=True,
            check=False,
        )
    except OSError:
        return False
    return os.fsencode(data) in listing.stdout


def answer(port: int) -> dict[str, Any] | None:
    """Returns the reply of the server on `port` to `hello`, or None when none answers within 2 s."""
    if is_free(port):
        return None
    try:
        with _client(port) as client:
            return client.admin.command("hello")
    except PyMongoError:
        return None


def wait_for_answer(program: Program, port: int, *, alive: Callable[[], bool], timeout: float) -> dict[str, Any] | None:
    """Returns the reply to `hello` of a writable server that was just started on `port`.

    A mongod that belongs to no replica set yet is made the only member of one. Returns None when `alive`
    turns False or after `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while alive() and time.monotonic() < until:
        hello = answer(port)
        if hello and hello.get("isWritablePrimary"):
            return hello
        if hello and program.kind is Kind.MONGOD:
            # A member that is still coming up refuses; it is asked again.
            with suppress(PyMongoError), _client(port) as client:
                _initiate(client, f"{LOOPBACK}:{port}")
        time.sleep(_POLL)
    return None


def announce(port: int, hello: Mapping[str, Any]) -> str:
    """Returns the URI by which drivers use the server that gave this reply to `hello`.

    It names the replica set, so that drivers wait for a primary while the server restarts.
    """
    name = hello.get("setName")
    return f"mongodb://{LOOPBACK}:{port}/?" + (f"replicaSet={name}" if name else "directConnection=true")


def lacking(uri: str) -> list[str]:
    """Returns what the server lacks that axeq needs of a server of its own, tried by a deep probe."""
    client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, serverSelectionTimeoutMS=5000)
    with client:
        able = probe(client, "axeq_probe")
        with suppress(PyMongoError):
            client.drop_database("axeq_probe")
    return _missing(able)


def _missing(able: Capabilities) -> list[str]:
    needs = {
        "change streams": able.streams,
        "transactions": able.transactions,
        "its clock": able.clock,
        "labels freed by an update": able.freed_labels,
    }
    return [name for name, there in needs.items() if not there]


def _chosen(chosen: str) -> Program:
    path = Path(chosen).expanduser()
    if not (path.is_file() and os.access(path, os.X_OK)):
        raise EmbeddedUnavailable(f"AXEQ_MONGOD names {chosen!r}, which is no program: {CORRECT}")
    if not path.name.startswith(("mongod", "secantusd")):
        raise EmbeddedUnavailable(
            f"AXEQ_MONGOD names {chosen!r}: its file name must start with 'mongod' or 'secantusd', which "
            f"tells how it is started"
        )
    return _program(str(path.absolute()))


def _program(where: str) -> Program:
    name = Path(where).name
    if name.startswith("mongod"):
        kind = Kind.MONGOD
    elif name.startswith("secantusd-py"):
        kind = Kind.SECANTUS
    else:
        kind = Kind.SECANTUSD
    return Program(kind, (where,), where)


def _client(port: int) -> pymongo.MongoClient[dict[str, Any]]:
    return pymongo.MongoClient(
        LOOPBACK,
        port,
        directConnection=True,
        serverSelectionTimeoutMS=2000,
        connectTimeoutMS=2000,
        socketTimeoutMS=10000,
    )


def _initiate(client: pymongo.MongoClient[dict[str, Any]], host: str) -> None:
    try:
        config = client.admin.command("replSetGetConfig")["config"]
    except OperationFailure as error:
        if error.code == _NOT_YET_INITIALIZED:
            config = {"_id": REPLICA_SET, "members": [{"_id": 0, "host": host}]}
            client.admin.command("replSetInitiate", config)
        return
    if config["members"][0]["host"] != host:
        # The port has changed: a member that does not find itself in the set only lets itself be forced back.
        config["members"] = [{"_id": 0, "host": host}]
        config["version"] += 1
        client.admin.command("replSetReconfig", config, force=True)
