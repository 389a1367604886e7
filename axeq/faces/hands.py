"""What a pool does for a handler that runs; the base does nothing, for a context that no pool has made."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from axeq.documents.record import Document
from axeq.rules.outcome import Limits
from axeq.rules.settlement import Settlement

__all__ = ["Hands", "Terms"]


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms an attempt runs: the pool's `lease` and the job's `retention` once completed, in seconds, the
    largest result in bytes, and when the handler started.
    """

    lease: float = 30.0
    retention: float = Limits().retention
    max_result: int = 256 * 1024
    started_at: datetime | None = None


class Hands:
    """What a pool does for a handler. `attempt` is the pool's own; everything may be called from any thread."""

    def terms(self, attempt: Any) -> Terms:
        """Returns on what terms the attempt runs."""
        return Terms()

    def begins(self, attempt: Any) -> None:
        """Takes those of the attempt's jobs for lost whose leases have lapsed: no handler must begin under them."""

    def sure_until(self, attempt: Any) -> float:
        """Returns until when, by the monotonic clock, the leases of the attempt's jobs are confirmed."""
        return float("inf")

    def report(self, attempt: Any, fields: Document) -> None:
        """Has the handler's latest word stored soon."""

    def keep(self, attempt: Any, state: Any) -> None:
        """Notes that the attempt's checkpoint is stored."""

    def extend(self, attempt: Any, seconds: float) -> None:
        """Moves the end of the attempt to so long from now."""

    def suspend(self, attempt: Any, seconds: float) -> Future[None] | None:
        """Leaves the attempt's jobs unwritten for so long; once the future, if any, is done, nothing is on its way."""
        return None

    def extended(self, attempt: Any, seconds: float) -> None:
        """Notes that the leases have just been extended by so much more than a lease."""

    def began(self, attempt: Any, session: Any) -> None:
        """Notes the id of the session whose transaction has begun."""

    def resume(self, attempt: Any) -> None:
        """Has the leases extended again as before."""

    def ends_badly(self, attempt: Any) -> bool:
        """Whether the attempt was told to stop in a way that no completion overrides."""
        return False

    def cancel(self, attempt: Any, reason: str) -> None:
        """Notes that somebody asked for the job to be cancelled."""

    async def bury(self, attempt: Any) -> None:
        """Undoes what a handler whose process has died left open."""

    def lose(self, attempt: Any, reason: str) -> None:
        """Notes that the attempt's lease is lost, while the handler is about to hear it."""

    def complete(self, attempt: Any, entries: Sequence[Settlement]) -> None:
        """Notes that the attempt's jobs have completed in the handler's transaction."""
