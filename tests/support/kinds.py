"""The kinds of store that the suite runs on, and what a kind or a server cannot do, as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from axeq.wire.capabilities import Capabilities

__all__ = ["KINDS", "NEEDS", "why_not"]

KINDS = ("uri", "sync-client", "sync-database", "async-client", "motor", "mongomock", "embedded")

NEEDS: Mapping[str, str] = {
    "streams": "change streams",
    "transactions": "transactions of several documents",
    "exclusive": "claims and unique indexes that hold between processes",
    "processes": "a store that another process can open",
    "plans": "explain, and indexes that order and cover",
}
"""What a test may ask of a store, by `@pytest.mark.needs(...)`."""

_FROM_A_CLIENT = "a store made from a client cannot go to another process"

_LACKING_KINDS: Mapping[str, Mapping[str, str]] = {
    "streams": {"mongomock": "mongomock has no change streams: its pools poll"},
    "transactions": {"mongomock": "mongomock has no transactions"},
    "exclusive": {"mongomock": "mongomock's data is this process's own, and its find-and-modify is not atomic"},
    "processes": {
        "sync-client": _FROM_A_CLIENT,
        "sync-database": _FROM_A_CLIENT,
        "async-client": _FROM_A_CLIENT,
        "motor": _FROM_A_CLIENT,
        "mongomock": "mongomock's data is this process's own",
    },
    "plans": {"mongomock": "mongomock has no query planner"},
}

_LACKING_SERVERS: Mapping[str, tuple[Callable[[Capabilities], bool], str]] = {
    "streams": (lambda able: able.streams, "the server has no change streams, tried"),
    "transactions": (lambda able: able.transactions, "the server has no transactions, tried"),
    "exclusive": (lambda able: bool(able.freed_labels), "the server never frees a label that an update ends, tried"),
}


def why_not(kind: str, need: str, able: Capabilities) -> str | None:
    """Returns why stores of `kind`, on a server that is `able`, cannot do what a test needs; None where they can."""
    if need not in NEEDS:
        raise ValueError(f"unknown need {need!r}: one of {', '.join(NEEDS)}")
    if reason := _LACKING_KINDS.get(need, {}).get(kind):
        return reason
    can, reason = _LACKING_SERVERS.get(need, (lambda able: True, ""))
    return None if can(able) else reason
