"""Which server programs are found, in which order, and how each is started. Nothing is started here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from pymongo.errors import OperationFailure

from axeq.wire import servers
from axeq.wire.servers import Kind, Program
from axeq.words.errors import EmbeddedUnavailable


def program(folder: Path, name: str) -> str:
    path = folder / name
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def with_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("with_package")
def test_the_chosen_program_comes_first_and_the_package_last(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("secantusd-mdb", "secantusd-rs", "mongod"):
        program(folder, name)
    chosen = program(tmp_path, "mongod-8")

    found = servers.find({"AXEQ_MONGOD": chosen, "PATH": str(folder)})

    assert [Path(each.command[0]).name for each in found] == [
        "mongod-8",
        "mongod",
        "secantusd-rs",
        "secantusd-mdb",
        Path(sys.executable).name,
    ]
    assert [each.kind for each in found] == [
        Kind.MONGOD,
        Kind.MONGOD,
        Kind.SECANTUSD,
        Kind.SECANTUSD,
        Kind.SECANTUS,
    ]


@pytest.mark.usefixtures("without_package")
def test_a_program_that_is_chosen_and_on_path_is_tried_once(tmp_path: Path) -> None:
    chosen = program(tmp_path, "secantusd-rs")

    found = servers.find({"AXEQ_MONGOD": chosen, "PATH": str(tmp_path)})

    assert found == [Program(Kind.SECANTUSD, (chosen,), chosen)]


@pytest.mark.usefixtures("without_package")
def test_nothing_found_is_an_error_that_names_what_was_tried_and_the_mend(tmp_path: Path) -> None:
    found = servers.find({"PATH": str(tmp_path)})

    text = str(servers.unavailable(Path("/jobs"), []))

    assert found == []
    assert "\n" not in text
    for word in (
        "/jobs",
        "AXEQ_MONGOD",
        "mongod",
        "secantusd-rs",
        "SecantusDB",
        "pip install 'axeq[embedded]'",
    ):
        assert word in text


def test_programs_that_were_passed_over_are_named_with_the_reason() -> None:
    text = str(servers.unavailable(Path("/jobs"), ["/bin/secantusd-rs lacks transactions"]))

    assert "/bin/secantusd-rs lacks transactions" in text
    assert "AXEQ_MONGOD" in text


@pytest.mark.parametrize("name", ["missing", "not-executable"])
def test_a_chosen_path_that_is_no_program_is_an_error_that_names_it(tmp_path: Path, name: str) -> None:
    (tmp_path / "not-executable").touch()

    with pytest.raises(EmbeddedUnavailable, match=f"AXEQ_MONGOD names '{tmp_path / name}'"):
        servers.find({"AXEQ_MONGOD": str(tmp_path / name), "PATH": ""})


def test_a_chosen_program_of_unknown_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedUnavailable, match="must start with 'mongod' or 'secantusd'"):
        servers.find({"AXEQ_MONGOD": program(tmp_path, "postgres"), "PATH": ""})


def test_mongod_is_started_as_a_replica_set_on_loopback() -> None:
    mongod = Program(Kind.MONGOD, ("/bin/mongod",), "/bin/mongod")

    arguments = mongod.arguments(port=20001, data=Path("/jobs/mongod"), config=Path("/jobs/server.conf"))

    assert arguments == [
        *("/bin/mongod", "--dbpath", "/jobs/mongod", "--bind_ip", "127.0.0.1", "--port", "20001"),
        *("--replSet", "axeq", "--nounixsocket", "--quiet"),
    ]


@pytest.mark.parametrize(
    ("kind", "command"),
    [(Kind.SECANTUSD, ("/bin/secantusd-rs",)), (Kind.SECANTUS, ("python", "-P", "-m", "secantus"))],
)
def test_secantus_is_started_with_durable_commits_and_no_stray_configuration(
    kind: Kind, command: tuple[str, ...]
) -> None:
    secantus = Program(kind, command, "secantus")

    arguments = secantus.arguments(port=20001, data=Path("/jobs/data"), config=Path("/jobs/server.conf"))

    assert arguments == [
        *command,
        *("--config", "/jobs/server.conf", "--host", "127.0.0.1", "--port", "20001"),
        *("--storage-path", "/jobs/data", "--sync-on-commit", "--log-level", "WARNING"),
    ]


def test_a_server_does_not_see_the_variables_that_would_configure_it() -> None:
    environment = servers.environment(
        {"PATH": "/bin", "SECANTUS_OPLOG_ASYNC": "1", "AXEQ_URI": "mongodb://ann:s3cret@h/db"}
    )

    assert environment == {"PATH": "/bin"}


def test_drivers_are_told_the_replica_set_where_there_is_one() -> None:
    assert servers.announce(20001, {"setName": "axeq"}) == "mongodb://127.0.0.1:20001/?replicaSet=axeq"
    assert servers.announce(20001, {}) == "mongodb://127.0.0.1:20001/?directConnection=true"


class Admin:
    """Answers `replSetGetConfig` with the configuration it has, and notes every other command."""

    def __init__(self, config: dict[str, Any] | None) -> None:
        self.admin = self
        self.config = config
        self.commands: list[tuple[str, Any, dict[str, Any]]] = []

    def command(self, name: str, value: Any = 1, **options: Any) -> dict[str, Any]:
        if name != "replSetGetConfig":
            self.commands.append((name, value, options))
            return {}
        if self.config is None:
            raise OperationFailure("no replset config has been received", 94)
        return {"config": self.config}


def test_a_new_mongod_becomes_the_only_member_of_its_set() -> None:
    client: Any = Admin(None)

    servers._initiate(client, "127.0.0.1:20001")

    expected = {"_id": "axeq", "members": [{"_id": 0, "host": "127.0.0.1:20001"}]}
    assert client.commands == [("replSetInitiate", expected, {})]


def test_a_mongod_whose_port_has_changed_is_told_its_new_host() -> None:
    client: Any = Admin({"_id": "axeq", "version": 3, "members": [{"_id": 0, "host": "127.0.0.1:20001"}]})

    servers._initiate(client, "127.0.0.1:20002")

    expected = {"_id": "axeq", "version": 4, "members": [{"_id": 0, "host": "127.0.0.1:20002"}]}
    assert client.commands == [("replSetReconfig", expected, {"force": True})]


def test_a_mongod_that_knows_its_host_is_left_alone() -> None:
    client: Any = Admin({"_id": "axeq", "version": 3, "members": [{"_id": 0, "host": "127.0.0.1:20001"}]})

    servers._initiate(client, "127.0.0.1:20001")

    assert client.commands == []
