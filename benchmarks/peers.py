"""Measures axeq beside other job queues, one after another in one run on this machine.

Makes an environment for each under `benchmarks/.venvs`, starts the servers it finds on loopback, prints a table and
ends what it started. See README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mongodb import mongodb

HERE = Path(__file__).resolve().parent
PROGRAMS = HERE / "peers"
ENVIRONMENTS = HERE / ".venvs"
CHART_PACKAGES = ("matplotlib==3.10.8",)
START_LIMIT = 30.0
CONCURRENCY = 10

WITH, WITHOUT = True, False


@dataclass(frozen=True)
class Peer:
    """One queue on one backend: what it needs, what it can do, and what it says of a job whose worker is killed.

    `most` caps the number of jobs, so that a slow peer does not hold up the run, and one whose claims slow down
    with the backlog is shown at its best.
    """

    name: str
    backend: str
    program: str
    packages: tuple[str, ...]
    results: tuple[bool, ...]
    most: int
    when_killed: str


PEERS = [
    Peer("axeq", "mongodb", "axeq", (), (WITH, WITHOUT), 100_000, "run again once its 30 s lease lapses"),
    Peer("arq", "redis", "arq", ("arq==0.28.0",), (WITH,), 5000, "run again after 310 s"),
    Peer(
        "saq",
        "redis",
        "saq",
        ("saq[redis]==0.26.4", "typing_extensions"),
        (WITH,),
        5000,
        "aborted by a sweep; again only with retries > 1",
    ),
    Peer(
        "taskiq",
        "redis",
        "taskiq",
        ("taskiq==0.13.0", "taskiq-redis==1.2.4"),
        (WITH, WITHOUT),
        5000,
        "run again after 10 min idle (so is a longer live one)",
    ),
    Peer("dramatiq", "redis", "dramatiq", ("dramatiq[redis]==2.2.1",), (WITH, WITHOUT), 5000, "run again after 60 s"),
    Peer("huey", "redis", "huey", ("huey==3.5.4", "redis"), (WITH, WITHOUT), 5000, "lost"),
    Peer("celery", "redis", "celery", ("celery[redis]==5.7.0",), (WITH, WITHOUT), 3000, "lost, unless acks_late"),
    Peer("rq", "redis", "rq", ("rq==3.0.0",), (WITH,), 2000, "failed; again only if enqueued with Retry"),
    Peer("asynq", "redis", "asynq", (), (WITHOUT,), 20_000, "run again after its 30 s lease, within a minute"),
    Peer(
        "procrastinate",
        "postgres",
        "procrastinate",
        ("procrastinate==3.10.0", "psycopg[binary]"),
        (WITHOUT,),
        2000,
        "stays 'doing' until the application looks for it",
    ),
    Peer("celery-mongodb", "mongodb", "celery", ("celery==5.7.0", "pymongo"), (WITH, WITHOUT), 500, "lost"),
    Peer(
        "dramatiq-mongodb",
        "mongodb",
        "dramatiq_mongodb",
        ("dramatiq-mongodb==0.8.3", "dramatiq<2"),
        (WITH, WITHOUT),
        500,
        "stays 'consumed' for ever",
    ),
    Peer(
        "taskiq-mongodb",
        "mongodb",
        "taskiq_mongodb",
        ("taskiq-mongodb==0.1.0", "taskiq<0.13"),
        (WITH, WITHOUT),
        500,
        "dead after 300 s; again only with max_retries > 0",
    ),
    Peer(
        "beanie-batteries-queue",
        "mongodb",
        "beanie_batteries_queue",
        ("beanie-batteries-queue==0.4.0",),
        (WITHOUT,),
        500,
        "stays 'running' for ever",
    ),
    Peer(
        "mongo-taskqueue",
        "mongodb",
        "mongo_taskqueue",
        ("mongo-taskqueue[async]==1.0.4",),
        (WITHOUT,),
        500,
        "stays 'pending' unless a lease is set and refresh() called",
    ),
    Peer("pynenc", "mongodb", "pynenc", ("pynenc-mongo==0.1.7",), (WITH,), 200, "put back by its recovery"),
]


class Skip(Exception):
    """A peer or a server cannot be had here; says why."""


def main() -> None:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    peers = [peer for peer in PEERS if not given.only or peer.name in given.only]
    report: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load1": round(os.getloadavg()[0], 2),
        "servers": {},
        "rows": [],
        "skipped": {},
    }
    print(f"{report['machine']}; load average {report['load1']}", file=sys.stderr)
    began = time.monotonic()
    with ExitStack() as stack:
        urls: dict[str, str] = {}
        for backend in dict.fromkeys(peer.backend for peer in peers):
            try:
                urls[backend], report["servers"][backend] = stack.enter_context(SERVERS[backend]())
            except Skip as reason:
                report["skipped"][backend] = str(reason)
        for number, peer in enumerate(peers):
            _measure_peer(peer, number, urls, given, report)
    _compare(report["rows"])
    report["seconds"] = round(time.monotonic() - began)
    _print_table(report)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n")
    if given.chart:
        _draw(report, given.chart.resolve())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, help="how many jobs, default 5000; slow peers get fewer")
    parser.add_argument("--latency", type=int, help="how many jobs are timed one by one, default 50")
    parser.add_argument("--only", metavar="NAME,..", type=_names, help=", ".join(peer.name for peer in PEERS))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write everything that was measured")
    parser.add_argument("--chart", metavar="FILE.png", type=Path, help="draw the rates (makes an environment for it)")
    parser.add_argument("--quick", action="store_true", help="1000 jobs and 20 timed ones, where not given")
    given = parser.parse_args()
    given.n = given.n or (1000 if given.quick else 5000)
    given.latency = (20 if given.quick else 50) if given.latency is None else given.latency
    return given


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - {peer.name for peer in PEERS}:
        raise argparse.ArgumentTypeError(f"no peer is named {', '.join(sorted(unknown))}")
    return names


# Measuring


def _measure_peer(
    peer: Peer, number: int, urls: dict[str, str], given: argparse.Namespace, report: dict[str, Any]
) -> None:
    try:
        if peer.backend not in urls:
            raise Skip(f"no {peer.backend}")
        program = _program(peer)
        url = _own_database(peer, number, urls[peer.backend])
    except Skip as reason:
        report["skipped"][peer.name] = str(reason)
        print(f"{peer.name}: skipped, {reason}", file=sys.stderr)
        return
    for results in peer.results:
        mode = "with results" if results else "without results"
        options = ["--url", url, "--n", str(min(given.n, peer.most)), "--concurrency", str(CONCURRENCY)]
        options += ["--latency", str(given.latency), "--results", "yes" if results else "no"]
        try:
            measured = _run([*program, *options])
        except Skip as reason:
            report["skipped"][f"{peer.name} {mode}"] = str(reason)
            print(f"{peer.name} {mode}: failed, {reason}", file=sys.stderr)
            continue
        row = {"peer": peer.name, "backend": peer.backend, "results": results, "when_killed": peer.when_killed}
        report["rows"].append(measured | row)
        print(f"{peer.name} {mode}: {measured['process_per_s']:,.0f} jobs/s", file=sys.stderr)


def _run(command: list[str]) -> dict[str, Any]:
    process = subprocess.Popen(command, cwd=PROGRAMS, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        answer, complaint = process.communicate(timeout=420)
    except subprocess.TimeoutExpired:
        raise Skip("took longer than 7 minutes") from None
    finally:
        # Asked to end, a program ends its worker too.
        process.terminate()
        process.wait()
    if process.returncode:
        raise Skip(" | ".join(complaint.strip().splitlines()[-12:]) or f"exit code {process.returncode}")
    measured: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return measured


def _compare(rows: list[dict[str, Any]]) -> None:
    """Notes for each row how many times as many jobs axeq ran in the same mode, with results or without."""
    own = {row["results"]: row["process_per_s"] for row in rows if row["peer"] == "axeq"}
    for row in rows:
        row["axeq_is"] = round(own[row["results"]] / row["process_per_s"], 2) if row["results"] in own else None


# What a peer needs


def _program(peer: Peer) -> list[str]:
    if peer.program == "asynq":
        return [_go_build(PROGRAMS / "asynq")]
    python = _environment(peer.name, peer.packages) if peer.packages else sys.executable
    return [python, str(PROGRAMS / f"{peer.program}_peer.py")]


def _environment(name: str, packages: tuple[str, ...]) -> str:
    """Returns the Python of an environment that has `packages`; makes it when it is not there, or has others."""
    folder = ENVIRONMENTS / name
    python, note = folder / "bin" / "python", folder / "packages.txt"
    wanted = "\n".join([platform.python_version(), *packages])
    if not (note.exists() and note.read_text() == wanted):
        print(f"{name}: installing {' '.join(packages)}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        _prepare([str(python), "-m", "pip", "install", "--quiet", *packages])
        note.write_text(wanted)
    return str(python)


def _go_build(source: Path) -> str:
    go = shutil.which("go")
    if go is None:
        raise Skip("no Go toolchain on PATH")
    program = ENVIRONMENTS / source.name / source.name
    _prepare([go, "build", "-o", str(program), "."], cwd=source)
    return str(program)


def _prepare(command: list[str], **options: Any) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if done.returncode:
        raise Skip(f"{Path(command[0]).name} failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}")


def _own_database(peer: Peer, number: int, url: str) -> str:
    """Returns the URL with a database of the peer's own, which its program empties."""
    if peer.backend == "postgres":
        return url
    parts = urlsplit(url)
    name = str(number % 16) if peer.backend == "redis" else f"axeq_bench_{peer.name.replace('-', '_')}"
    return urlunsplit(parts._replace(path=f"/{name}"))


# Servers: each yields its URL and what it is


@contextmanager
def _redis() -> Iterator[tuple[str, str]]:
    program = shutil.which("redis-server")
    if program is None:
        raise Skip("no redis-server on PATH")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="axeq-redis-") as folder:
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder]
        with _server(command, "redis", port):
            yield (
                f"redis://127.0.0.1:{port}",
                f"Redis {_version(program)}, its defaults: snapshots, no append-only file",
            )


@contextmanager
def _postgres() -> Iterator[tuple[str, str]]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[-3]))
    if not found:
        raise Skip("no /usr/lib/postgresql/*/bin")
    programs, port = found[-1].parent, _free_port()
    # It refuses to run as root; Debian's package brings this user.
    user = "postgres" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="axeq-postgres-") as folder:
        if user:
            shutil.chown(folder, user)
        data = Path(folder, "data")
        create = [str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres"]
        _prepare(create, user=user, cwd=folder)
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
        command += ["-c", f"unix_socket_directories={folder}"]
        with _server(command, "postgres", port, user=user, cwd=folder, end=signal.SIGINT):
            ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
            _wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, "postgres does not get ready")
            yield (
                f"postgresql://postgres@127.0.0.1:{port}/postgres",
                f"PostgreSQL {_version(str(found[-1]))}, its defaults: each commit on disk",
            )


SERVERS: dict[str, Callable[[], Any]] = {"redis": _redis, "postgres": _postgres, "mongodb": mongodb}


@contextmanager
def _server(
    command: list[str],
    name: str,
    port: int,
    *,
    user: str | None = None,
    cwd: str | None = None,
    end: signal.Signals = signal.SIGTERM,
) -> Iterator[None]:
    # A session of its own: Ctrl-C ends the measuring first, and the server after it.
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, user=user, cwd=cwd, start_new_session=True
    )
    try:
        _wait_until(lambda: process.poll() is not None or _listens(port), f"{name} does not answer")
        if process.poll() is not None:
            raise Skip(f"{name} ended with code {process.returncode}")
        yield
    finally:
        process.send_signal(end)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until(done: Callable[[], bool], complaint: str) -> None:
    until = time.monotonic() + START_LIMIT
    while not done():
        if time.monotonic() > until:
            raise Skip(complaint)
        time.sleep(0.05)


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+(\.\d+)+", said)
    return found.group() if found else "of unknown version"


# Telling


def _print_table(report: dict[str, Any]) -> None:
    columns = ["backend", "peer", "version", "results", "jobs", "enqueue/s", "jobs/s", "p50 ms", "p95 ms", "axeq is"]
    lines = [[*columns, "a job whose worker is killed"]]
    ordered = sorted(report["rows"], key=lambda row: (not row["results"], -row["process_per_s"]))
    lines += [_line(row) for row in ordered]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    print()
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
    print()
    for backend, server in report["servers"].items():
        print(f"{backend}: {server}")
    for name, reason in report["skipped"].items():
        print(f"skipped: {name}: {reason}")
    print(f"{report['machine']}; load average {report['load1']} at the start; {report['seconds']} s")


def _line(row: dict[str, Any]) -> list[str]:
    twice = f" ({row['ran_twice']} ran twice here)" if row["ran_twice"] else ""
    return [
        row["backend"],
        row["peer"],
        row["version"],
        "yes" if row["results"] else "no",
        f"{row['n']:,}",
        f"{row['enqueue_per_s']:,.0f}",
        f"{row['process_per_s']:,.0f}",
        _milliseconds(row["latency_p50_ms"]),
        _milliseconds(row["latency_p95_ms"]),
        "-" if row["axeq_is"] is None else f"{row['axeq_is']:.1f}x",
        row["when_killed"] + twice,
    ]


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _draw(report: dict[str, Any], chart: Path) -> None:
    try:
        python = _environment("chart", CHART_PACKAGES)
        _prepare([python, str(PROGRAMS / "chart.py"), str(chart)], input=json.dumps(report))
    except Skip as reason:
        print(f"no chart: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
