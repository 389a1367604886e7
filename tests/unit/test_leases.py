"""What the lease thread tells its pool."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from axeq.attempts.leases import Leases
from axeq.rules.lifecycle import Held, Holding

from .playing import UNANSWERED, ScriptedClock


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
