"""What jobs are, written from the contract alone: a dict of them, and the state machine as plain arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["FINAL", "LEGAL", "LIVE", "Expected", "Reference"]

LIVE = frozenset({"enqueued", "dequeued", "failed"})
FINAL = frozenset({"completed", "cancelled"})

LEGAL = frozenset(
    {
        ("enqueued", "dequeued"),
        ("enqueued", "cancelled"),
        ("dequeued", "dequeued"),
        ("dequeued", "enqueued"),
        ("dequeued", "completed"),
        ("dequeued", "failed"),
        ("dequeued", "cancelled"),
        ("failed", "dequeued"),
        ("failed", "cancelled"),
        ("failed", "enqueued"),
        ("completed", "enqueued"),
        ("cancelled", "enqueued"),
    }
)
"""Every way from one state to another. A job leaves failed, completed and cancelled for enqueued by hand alone."""


@dataclass(slots=True)
class Expected:
    """A job as it must be. Times are in milliseconds; `due` is the end of the lease while it is dequeued."""

    name: str
    due: int
    label: str | None = None
    priority: int = 0
    state: str = "enqueued"
    attempts: int = 0
    lost: int = 0
    charged: int = 0
    token: Any = None
    cancel: bool = False
    events: int = 0

    @property
    def live(self) -> bool:
        return self.state in LIVE

    def claimed(self, token: Any, until: int) -> None:
        self.charged = 0 if self.lost else 1
        self.attempts += self.charged
        self.lost += 1
        self.state, self.token, self.due = "dequeued", token, until

    def ended(self, state: str) -> None:
        self.state, self.lost, self.cancel = state, 0, False

    def back(self, state: str, due: int) -> None:
        self.state, self.due = state, due

    def logged(self) -> None:
        self.events = min(self.events + 1, 50)


@dataclass(slots=True)
class Reference:
    """All jobs, by id."""

    jobs: dict[Any, Expected] = field(default_factory=dict)

    def holder(self, name: str, label: str | None) -> Any:
        """Returns the id of the live job that has a label, None where it is free."""
        for identity, job in self.jobs.items():
            if label is not None and job.live and (job.name, job.label) == (name, label):
                return identity
        return None

    def due(self, now: int) -> list[Any]:
        """Returns the jobs that can be claimed, in the order in which they are to be."""
        ready = [identity for identity, job in self.jobs.items() if job.live and job.due <= now]
        return sorted(ready, key=lambda identity: (self.jobs[identity].priority, self.jobs[identity].due))
