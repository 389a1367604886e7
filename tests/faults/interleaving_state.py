"""One moment of an exploration: the job, two pools, somebody outside, and what is still on its way to the server."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from axeq.documents.record import Document
from axeq.rules.outcome import judge
from axeq.wire.wire import Command, Sleep

from .interleaving_flat import Flat, flat
from .interleaving_oracle import LIVE, Ledger, check_ended, check_stored, judged
from .interleaving_rules import (
    DOUBT,
    JOB,
    LEASE,
    LIMITS,
    PATIENCE,
    Fault,
    Token,
    Underway,
    begin,
    milliseconds_of,
    moment,
)
from .model_collection import Collection

__all__ = ["Moment", "Pool", "Step", "canonical", "steps"]

Step = tuple[str, Callable[[], "Moment"]]
OUTSIDE = 2
"""The place of somebody outside, after the two pools."""
_ROUND = 3
"""How many commands a cancel sends before it looks again."""


@dataclass(frozen=True, slots=True)
class Pool:
    """One process: what it asks about the job, what its lease thread asks, the job that it holds.

    `believes` is until when it may rely on its lease, `slept` how far its waits have moved its own time.
    """

    main: Underway | None = None
    lease: Underway | None = None
    held: Document | None = None
    believes: int = 0
    slept: int = 0

    @property
    def running(self) -> bool:
        """Whether its handler runs."""
        return self.held is not None and self.main is None


@dataclass(frozen=True, slots=True)
class Late:
    """A command whose sender was told of a failure while it was still on its way; until `until` of his own time."""

    sender: int
    by: Underway
    command: Command
    until: int


@dataclass(frozen=True, slots=True)
class Moment:
    """A state of the exploration. `outside` lists what somebody outside will do yet."""

    document: Document | None
    server: int
    faults: int
    jumps: int
    outside: tuple[str, ...]
    outcomes: tuple[str, ...]
    pools: tuple[Pool, Pool] = (Pool(), Pool())
    user: Underway | None = None
    late: tuple[Late, ...] = ()
    ledger: Ledger = field(default_factory=Ledger)
    claims: int = 0

    @property
    def over(self) -> bool:
        """Whether the job has come to its end, or was never stored and never will be."""
        if self.document is None:
            return self.user is None and not self.late and not self.outside
        return self.document["state"] not in LIVE

    def with_pool(self, index: int, pool: Pool, **changes: Any) -> Moment:
        pools = (pool, self.pools[1]) if index == 0 else (self.pools[0], pool)
        return replace(self, pools=pools, **changes)


def steps(now: Moment) -> Iterator[Step]:
    """Yields everything that can happen next."""
    for index, pool in enumerate(now.pools):
        yield from _pool_steps(now, index, pool)
    yield from _outside_steps(now)
    for position, late in enumerate(now.late):
        yield f"late {late.by.rule} of {late.sender}", lambda position=position: _arrives(now, position)
    yield from _jumps(now)


def _pool_steps(now: Moment, index: int, pool: Pool) -> Iterator[Step]:
    if pool.main is None and pool.held is None:
        yield from _claims(now, index)
        return
    yield f"{index} dies", lambda: now.with_pool(index, Pool())
    if pool.main is not None:
        yield from _replies(now, index, pool.main, "main")
    if pool.lease is not None:
        yield from _replies(now, index, pool.lease, "lease")
    elif pool.running:
        yield f"{index} extends", lambda: now.with_pool(index, replace(pool, lease=_extension(now, pool)))
    if pool.running:
        for outcome in now.outcomes:
            yield f"{index} {outcome}", lambda outcome=outcome: now.with_pool(index, _ending(now, pool, outcome))


def _claims(now: Moment, index: int) -> Iterator[Step]:
    document = now.document
    if document is None or "available_at" not in document or document["available_at"] > moment(now.server - DOUBT):
        return
    token = Token(f"t{now.claims}")

    def claim(rule: str, *inputs: Any) -> Moment:
        main = begin(rule, now.server, now.server, token, *inputs)
        return now.with_pool(index, Pool(main=main), claims=now.claims + 1)

    yield f"{index} claims one", lambda: claim("claim_one", document)
    if not document["lost"]:
        yield f"{index} claims many", lambda: claim("claim_many")


def _extension(now: Moment, pool: Pool) -> Underway:
    assert pool.held is not None
    return begin("extend", now.server, now.server + pool.slept, pool.held["claim"]["token"])


def _ending(now: Moment, pool: Pool, outcome: str) -> Pool:
    assert pool.held is not None
    own = now.server + pool.slept
    return replace(pool, main=begin("settle", now.server, own, pool.held["claim"]["token"], pool.held, outcome))


def _outside_steps(now: Moment) -> Iterator[Step]:
    if now.user is not None:
        yield from _replies(now, OUTSIDE, now.user, "user")
    elif now.outside and (now.document is not None or now.outside[0] == "insert"):
        rule, *rest = now.outside
        user = begin(rule, now.server, now.server)
        yield f"{rule} by hand", lambda: replace(now, user=user, outside=tuple(rest))


def _jumps(now: Moment) -> Iterator[Step]:
    due = now.document.get("available_at") if now.document else None
    if not now.jumps or due is None:
        return
    for name, to in (("nearly", milliseconds_of(due) - DOUBT // 2), ("lapse", milliseconds_of(due) + DOUBT)):
        if to > now.server:
            # All that is on its way has its deadline long before.
            yield name, lambda to=to: replace(now, server=to, jumps=now.jumps - 1, late=())


def _replies(now: Moment, actor: int, asking: Underway, part: str) -> Iterator[Step]:
    name = f"{actor} {asking.rule}"
    if isinstance(asking.command, Sleep):
        yield f"{name} waits", lambda: _wakes(now, actor, asking, part)
        return
    yield name, lambda: _answered(now, actor, asking, part)
    if now.faults:
        fewer = replace(now, faults=now.faults - 1)
        yield f"{name} unanswered", lambda: _answered(fewer, actor, asking, part, Fault.UNANSWERED)
        yield f"{name} unsent", lambda: _told(fewer, actor, asking, part, Fault.UNSENT)
        yield f"{name} unanswered, late", lambda: _delayed(fewer, actor, asking, part)


def _own_time(now: Moment, actor: int) -> int:
    return now.server + (now.pools[actor].slept if actor != OUTSIDE else 0)


def _wakes(now: Moment, actor: int, asking: Underway, part: str) -> Moment:
    assert isinstance(asking.command, Sleep)
    if actor == OUTSIDE:
        # His patience is that of a rule that waits for longer than any command takes.
        late = tuple(each for each in now.late if each.sender != actor)
        return _told(replace(now, late=late), actor, asking, part, None)
    pool = now.pools[actor]
    slept = pool.slept + math.ceil(asking.command.seconds * 1000)
    late = tuple(each for each in now.late if each.sender != actor or each.until > now.server + slept)
    return _told(now.with_pool(actor, replace(pool, slept=slept), late=late), actor, asking, part, None)


def _answered(now: Moment, actor: int, asking: Underway, part: str, fault: Fault | None = None) -> Moment:
    assert asking.command is not None
    reached, reply = _carried_out(now, actor, asking, asking.command)
    return _told(reached, actor, asking, part, reply if fault is None else fault)


def _delayed(now: Moment, actor: int, asking: Underway, part: str) -> Moment:
    assert asking.command is not None
    late = Late(actor, asking, asking.command, _own_time(now, actor) + PATIENCE)
    return _told(replace(now, late=(*now.late, late)), actor, asking, part, Fault.UNANSWERED)


def _arrives(now: Moment, position: int) -> Moment:
    late = now.late[position]
    rest = now.late[:position] + now.late[position + 1 :]
    reached, _ = _carried_out(replace(now, late=rest), late.sender, late.by, late.command)
    return reached


def _carried_out(now: Moment, actor: int, asking: Underway, command: Command) -> tuple[Moment, Any]:
    collection = Collection({} if now.document is None else {JOB: now.document})
    try:
        reply = collection.execute(command)
    except Exception as error:
        if type(error).__name__ != "DuplicateKey":
            raise
        reply = Fault.TAKEN
    after = collection.documents.get(JOB)
    running = [pool.believes for index, pool in enumerate(now.pools) if pool.running and index != actor]
    ledger = judged(now.document, after, asking, now.server, running, now.ledger)
    check_stored(after, ledger)
    return replace(now, document=after, ledger=ledger), reply


def _told(now: Moment, actor: int, asking: Underway, part: str, reply: Any) -> Moment:
    heard = asking.hear(now.server, _own_time(now, actor), reply)
    if heard.command is not None:
        if actor == OUTSIDE:
            # A cancel looks again for as long as the job moves: two rounds show what a third would.
            return replace(now, user=heard if len(heard.heard) <= 2 * _ROUND else None)
        pool = now.pools[actor]
        return now.with_pool(actor, replace(pool, main=heard) if part == "main" else replace(pool, lease=heard))
    check_ended(heard, now.document, now.ledger)
    if actor == OUTSIDE:
        return replace(now, user=None)
    if part == "lease":
        return now.with_pool(actor, _extended(now, now.pools[actor], heard))
    if heard.rule == "settle":
        return now.with_pool(actor, Pool())
    return now.with_pool(actor, _claimed(now, now.pools[actor], heard))


def _claimed(now: Moment, pool: Pool, ended: Underway) -> Pool:
    if ended.error is not None or not ended.result:
        return Pool()
    (record,) = ended.result
    held = Pool(held=record.document, believes=ended.began + LEASE, slept=pool.slept)
    verdict = judge(record, LIMITS, moment(now.server - DOUBT))
    if verdict is None:
        assert record.attempts <= LIMITS.max_attempts
        return held
    return _ending(now, held, verdict.cause.value)


def _extended(now: Moment, pool: Pool, ended: Underway) -> Pool:
    if ended.error is not None:
        return replace(pool, lease=None)
    if ended.result.lost:
        return replace(pool, lease=None) if pool.main is not None else Pool()
    kept = replace(pool, lease=None, believes=max(pool.believes, ended.began + LEASE))
    return _ending(now, kept, "requested") if ended.result.cancelled and pool.running else kept


def canonical(now: Moment) -> tuple[Any, ...]:
    """Returns what makes a moment differ from others: times from now on, tokens by the order in which they appear.

    Pools are alike, so which of two is which makes no difference.
    """
    first, second = (_pool_flat(pool) for pool in now.pools)
    order = (0, 1) if hash(first[0]) <= hash(second[0]) else (1, 0)
    parts = [flat(now.document), *((first, second) if order == (0, 1) else (second, first)), flat(now.user)]
    parts += [flat(late.by) for late in now.late]
    names: dict[Token, int] = {}
    tokens = [names.setdefault(token, len(names)) for part in parts for token in part[1]]
    times = [time - now.server for part in parts for time in part[2]]
    pools = [(max(now.pools[each].believes - now.server, 0), now.pools[each].slept) for each in order]
    late = [
        (order.index(each.sender) if each.sender < OUTSIDE else OUTSIDE, each.until - now.server) for each in now.late
    ]
    ledger = now.ledger
    applied = sorted(names[token] for token in ledger.applied if token in names)
    counts = (ledger.attempts, ledger.lost, ledger.charged, ledger.stored, now.faults, now.jumps, len(now.outside))
    shapes = tuple(part[0] for part in parts)
    return shapes, tuple(tokens), tuple(times), tuple(pools), tuple(late), tuple(applied), counts


def _pool_flat(pool: Pool) -> Flat:
    main, lease, held = flat(pool.main), flat(pool.lease), flat(pool.held)
    return (main[0], lease[0], held[0]), main[1] + lease[1] + held[1], main[2] + lease[2] + held[2]
