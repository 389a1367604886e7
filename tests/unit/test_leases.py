"""How the lease thread keeps leases, and what it tells its pool."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from axeq.attempts import leases as module
from axeq.attempts.leases import Leases
from axeq.rules.lifecycle import Held, Holding
from axeq.wire.wire import Call

from .playing import UNANSWERED, Counted, ScriptedClock


def wire(*replies: Any) -> Any:
    waiting = list(replies)

    def run(op: Any) -> Any:
        op.close()
        reply = waiting.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return SimpleNamespace(run=run)


def test_a_pool_is_told_when_the_server_confirms_leases_again_and_only_then() -> None:
    told: list[tuple[Holding, bool]] = []
    store: Any = SimpleNamespace(clock=ScriptedClock())
    leases = Leases(store, lease=30, report=lambda holding: told.append((holding, leases.healthy)))
    leases.hold([Held(1, "token")], since=0.0)
    server = wire(Holding(), UNANSWERED, UNANSWERED, Holding(), Holding())

    for _ in range(5):
        leases._beat(server, extending=True)

    assert told == [(Holding(), True)]


class Server:
    """A server that takes so long for each command in turn, and the time as the lease thread has it."""

    def __init__(self, lease: float, *seconds: float) -> None:
        self.now = 1000.0
        self.leases = Leases(SimpleNamespace(clock=ScriptedClock(), spare_wire=self.wire), lease=lease, report=print)  # type: ignore[arg-type]
        self.leases._ending = SimpleNamespace(wait=self.wait)  # type: ignore[assignment]
        self.tries: list[tuple[float, bool]] = []
        """When each extension was sent, and whether it was answered in time."""
        self._seconds = list(seconds)
        self._until = 0.0

    def monotonic(self) -> float:
        return self.now

    def wire(self, *, timeout: float) -> Any:
        return SimpleNamespace(run=self.run, close=lambda: None)

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return self.now >= self._until

    def run(self, op: Any) -> Any:
        command = next(op)
        if not isinstance(command, Call):
            op.close()
            return Holding()
        took = self._seconds.pop(0) if self._seconds else 0.001
        assert command.timeout is not None
        self.tries.append((self.now, took <= command.timeout))
        self.now += min(took, command.timeout)
        if took > command.timeout:
            raise UNANSWERED
        op.send(Counted(1))
        return Holding()

    def keep(self, seconds: float) -> None:
        """Has the thread's work done for so long."""
        self._until = self.now + seconds
        self.leases.hold([Held(1, "token")], since=self.now)
        self.leases._keep()


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Server]:
    def serve(lease: float, *seconds: float) -> Server:
        server = Server(lease, *seconds)
        monkeypatch.setattr(module, "time", server)
        return server

    return serve


@pytest.mark.parametrize("lease", [0.5, 1.0, 2.0, 3.0, 30.0])
def test_one_extension_without_an_answer_leaves_time_for_others_before_the_lease_is_over(
    serving: Callable[..., Server], lease: float
) -> None:
    server = serving(lease, 1e6)

    server.keep(0.99 * lease)

    (_, answered), (second, answered_then), *_ = server.tries
    assert (answered, answered_then) == (False, True)
    assert second - 1000.0 < 0.95 * lease
    assert server.leases.lapsed() == []
    assert server.leases.confirmed_until(1) == pytest.approx(max(sent for sent, ok in server.tries if ok) + lease)


@pytest.mark.parametrize("lease", [1.0, 3.0, 30.0])
def test_a_lease_is_kept_by_a_server_that_takes_a_quarter_of_it_for_each_answer(
    serving: Callable[..., Server], lease: float
) -> None:
    server = serving(lease, *[lease / 4] * 20)

    server.keep(5 * lease)

    sent = [moment for moment, answered in server.tries if answered]
    assert all(answered for _, answered in server.tries)
    # Each is confirmed, by its answer, before the one before it has been gone for a lease.
    assert all(later + lease / 4 < earlier + lease for earlier, later in zip([1000.0, *sent], sent, strict=False))


def test_extensions_begin_a_third_of_a_lease_apart_however_long_they_take(serving: Callable[..., Server]) -> None:
    server = serving(3.0, 0.4, 0.4, 0.4)

    server.keep(4.5)

    assert [moment - 1000.0 for moment, _ in server.tries[:4]] == pytest.approx([1.0, 2.0, 3.0, 4.0], abs=0.01)
