"""The server of a directory, with real processes: shared, kept, restarted, ended."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pymongo
import pytest

from axeq.wire import capabilities, servers
from axeq.wire.embedded import Home, Serving, open_embedded, take_lock
from axeq.words.errors import EmbeddedUnavailable
from tests.support.ports import deaf_port

T = TypeVar("T")
ROOT = str(Path(__file__).resolve().parents[2])
DEADLINE = 30.0

HOLD = """
import sys
from axeq.wire.embedded import open_embedded
with open_embedded(sys.argv[1]) as server:
    print(server.uri, flush=True)
    sys.stdin.read()
"""


def eventually(condition: Callable[[], T | None], *, timeout: float = DEADLINE) -> T:
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout:g} s")


def serving(path: Path) -> Serving:
    return eventually(lambda: ((now := Home(path).serving()) and now.ready and now) or None)


def ended(pid: int) -> bool:
    """Whether the process is gone, or a zombie that its foreign parent has not reaped."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes() == b""
    return False


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **changes}


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )


def hold(path: Path) -> subprocess.Popen[str]:
    return start("-c", HOLD, str(path))


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def finish(process: subprocess.Popen[str], number: int | None = None) -> tuple[int, str]:
    """Ends a holder: by closing its input, or by a signal. Returns its exit code and standard error."""
    if number is not None:
        process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, errors


def client(uri: str) -> pymongo.MongoClient[dict[str, Any]]:
    return pymongo.MongoClient(uri, serverSelectionTimeoutMS=10_000)


def greets(uri: str) -> bool:
    with client(uri) as asked:
        return bool(asked.admin.command("ping")["ok"])


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A directory whose keeper and server are ended after the test."""
    home = tmp_path / "store"
    yield home
    end_keeper(home)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory whose server runs for the whole module."""
    home = tmp_path_factory.mktemp("shared") / "store"
    with open_embedded(home):
        yield home
    end_keeper(home)


def unkept(home: Path) -> bool:
    """Whether no process holds the keeper's lock: a killed one holds it a moment longer than it seems to."""
    descriptor = take_lock(Home(home).keeper_lock, exclusive=False, timeout=0)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def end_keeper(home: Path) -> None:
    now = Home(home).serving()
    if now is None:
        return
    for pid in (now.keeper, now.pid):
        if not ended(pid):
            # The tests' data needs no clean end, which takes some servers seconds.
            os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: ended(pid))
    eventually(lambda: unkept(home))


def test_two_opens_in_one_process_share_one_server(shared: Path) -> None:
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(open_embedded, [shared, str(shared)])

    with first, second:
        assert first.uri == second.uri == serving(shared).uri
        assert first.path == shared
        assert first.server == serving(shared).program
    assert greets(first.uri)


def test_a_second_process_uses_the_same_server(shared: Path) -> None:
    with open_embedded(shared) as server:
        other = hold(shared)
        uri = first_line(other)
        code, errors = finish(other)

    assert (uri, code, errors) == (server.uri, 0, "")


def test_the_directory_is_for_its_owner_only(shared: Path) -> None:
    assert shared.stat().st_mode & 0o777 == 0o700


def test_the_server_can_do_all_that_axeq_needs(shared: Path) -> None:
    with open_embedded(shared) as server, client(server.uri) as asked:
        able = capabilities.probe(asked, "probed")

        assert able == capabilities.Capabilities(
            streams=True, transactions=True, clock=True, freed_labels=True, version=able.version
        )
        assert asked["probed"].list_collection_names() == []
        assert servers.lacking(server.uri) == []


def test_a_client_that_reaches_no_server_is_an_error_of_axeq(shared: Path) -> None:
    with (
        deaf_port() as port,
        pymongo.MongoClient("127.0.0.1", port, serverSelectionTimeoutMS=100) as asked,
        pytest.raises(capabilities.StoreUnavailable, match=f"127.0.0.1:{port}"),
    ):
        capabilities.probe(asked, "probed")


def test_a_forked_child_that_reads_the_uri_holds_the_server_by_itself(path: Path) -> None:
    script = """
import os, sys
from axeq.wire.embedded import open_embedded
server = open_embedded(sys.argv[1])
if os.fork() == 0:
    uri = server.uri
    print(uri, flush=True)
    sys.stdin.read()
    os._exit(0)
os.wait()
"""
    parent = start("-c", script, str(path))
    first_line(parent)
    parent.kill()
    parent.wait()

    with pytest.raises(AssertionError):
        eventually(lambda: takes_users_lock(path), timeout=1.0)
    finish(parent)
    eventually(lambda: takes_users_lock(path))


def test_closing_frees_the_lock_though_a_forked_child_lives_on(path: Path) -> None:
    script = """
import os, sys
from axeq.wire.embedded import open_embedded
server = open_embedded(sys.argv[1])
if os.fork() == 0:
    sys.stdin.read()
    os._exit(0)
server.close()
print("closed", flush=True)
os.wait()
"""
    parent = start("-c", script, str(path))
    first_line(parent)

    eventually(lambda: takes_users_lock(path))
    finish(parent)


def takes_users_lock(path: Path) -> bool:
    descriptor = take_lock(Home(path).users_lock, exclusive=True, timeout=0)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def test_data_survives_the_end_of_the_server_on_the_same_port(path: Path) -> None:
    with open_embedded(path) as server, client(server.uri) as writer:
        writer["shop"]["jobs"].insert_one({"_id": 1})
        before = serving(path)
    eventually(lambda: Home(path).serving() is None)
    eventually(lambda: ended(before.keeper) and ended(before.pid))

    with open_embedded(path) as again, client(again.uri) as reader:
        assert reader["shop"]["jobs"].find_one() == {"_id": 1}
        assert again.uri == before.uri
        assert serving(path).pid != before.pid


def test_a_server_whose_directory_is_removed_ends(path: Path) -> None:
    with open_embedded(path):
        pid = serving(path).pid

    shutil.rmtree(path)

    eventually(lambda: ended(pid))


def test_a_user_who_comes_while_the_server_ends_gets_a_fresh_one(path: Path) -> None:
    with open_embedded(path):
        before = serving(path)
    eventually(lambda: not ((now := Home(path).serving()) and now.ready))

    with open_embedded(path) as server:
        assert greets(server.uri)
        assert serving(path).pid != before.pid
        assert ended(before.pid)


def test_a_killed_keeper_leaves_its_server_to_the_next(path: Path) -> None:
    with open_embedded(path):
        before = serving(path)
        os.kill(before.keeper, signal.SIGKILL)
        eventually(lambda: unkept(path))

    with open_embedded(path) as server:
        assert greets(server.uri)
        assert serving(path).pid == before.pid
        assert serving(path).keeper != before.keeper
    # An adopted server is ended like one of the keeper's own.
    eventually(lambda: Home(path).serving() is None)
    assert ended(before.pid)


def test_a_killed_server_is_restarted_on_the_same_port_with_what_was_acknowledged(path: Path) -> None:
    with open_embedded(path) as server, client(server.uri) as user:
        user["shop"]["jobs"].insert_one({"_id": 1})
        before = serving(path)
        os.kill(before.pid, signal.SIGKILL)
        after = eventually(lambda: ((now := serving(path)).pid != before.pid and now) or None)

        assert after.uri == before.uri
        assert user["shop"]["jobs"].find_one() == {"_id": 1}


def test_keeper_and_server_both_killed_are_replaced(path: Path) -> None:
    with open_embedded(path):
        before = serving(path)
        for pid in (before.keeper, before.pid):
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: ended(pid))
        eventually(lambda: unkept(path))

        with open_embedded(path) as server:
            assert greets(server.uri)
            assert server.uri == before.uri
            assert serving(path).pid != before.pid


def test_two_processes_that_open_at_once_get_one_server(path: Path) -> None:
    holders = [hold(path) for _ in range(3)]

    uris = [first_line(holder) for holder in holders]
    served = serving(path).uri
    ends = [finish(holder) for holder in holders]

    assert uris == [served] * 3
    assert ends == [(0, "")] * 3
    assert (path / "keeper.log").read_text().count(" started ") == 1


def test_a_term_signal_to_the_keeper_ends_the_server_at_once(path: Path) -> None:
    with open_embedded(path):
        before = serving(path)
        os.kill(before.keeper, signal.SIGTERM)

        eventually(lambda: ended(before.keeper) and ended(before.pid))
        assert Home(path).serving() is None


def test_a_port_that_a_stranger_took_is_left_to_him(path: Path) -> None:
    with open_embedded(path):
        before = serving(path)
    end_keeper(path)
    eventually(lambda: servers.is_free(before.port))

    with socket.create_server(("127.0.0.1", before.port)), open_embedded(path) as server:
        assert serving(path).port != before.port
        assert greets(server.uri)


def test_data_of_one_kind_of_server_is_not_hidden_by_another(path: Path) -> None:
    path.mkdir(mode=0o700)
    (path / "kept.json").write_text('{"port": 29999, "kind": "another"}')

    with pytest.raises(EmbeddedUnavailable, match="cannot read its data, written by another"):
        open_embedded(path)


def test_a_program_that_does_not_start_is_passed_over_with_a_line(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "secantusd-broken"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    usable = os.environ.get("AXEQ_MONGOD")
    if usable:
        os.symlink(usable, tmp_path / "secantusd-rs")
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("AXEQ_MONGOD", str(broken))

    with open_embedded(path) as server:
        assert greets(server.uri)
    assert f"passed over: {broken} did not start" in (path / "keeper.log").read_text()


def test_no_server_program_is_an_error_that_says_so_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXEQ_MONGOD", "/no/such/mongod")

    with pytest.raises(EmbeddedUnavailable, match="AXEQ_MONGOD names '/no/such/mongod'") as caught:
        open_embedded(path)

    assert "\n" not in str(caught.value)
    assert "pip install 'axeq[embedded]'" in str(caught.value)


def test_a_path_that_cannot_be_made_is_an_error_of_axeq(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(EmbeddedUnavailable, match="cannot be used"):
        open_embedded(tmp_path / "file" / "store")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_dev_prints_a_uri_that_answers_and_ends_well(shared: Path, number: int) -> None:
    dev = start("-m", "axeq.edges.cli", "dev", str(shared))

    uri = first_line(dev)
    answered = greets(uri)
    code, errors = finish(dev, number)

    assert answered
    assert code == 0
    assert re.fullmatch(r".+ serves .+; Ctrl-C ends it, the data stays\n", errors)


def test_an_error_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "axeq.edges.cli", "dev", str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
        env=environment(AXEQ_MONGOD="/no/such/mongod"),
    )

    assert ran.returncode == 4
    assert ran.stdout == ""
    assert ran.stderr.startswith("axeq: AXEQ_MONGOD names '/no/such/mongod'")
    assert ran.stderr.count("\n") == 1
