"""The enqueue that keeps others away for a while, on canned replies: with a transaction, in two steps, and joined."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from axeq.rules.enqueue import Draft, Stored
from axeq.rules.isolation import VOID_AFTER, insert_isolated, insert_isolated_joined
from axeq.wire.wire import ISOLATIONS, JOBS, Call, Command, Find, Transaction
from axeq.words.errors import DuplicateKey, EnqueueUnknown, Isolated, LabelTaken, StoreUnavailable

from .playing import DOUBT, NOW, UNANSWERED, UNSENT, Counted, ScriptedClock, given_job, matches, play

HOUR = timedelta(hours=1)
MATCHED, MISSED = Counted(matched_count=1), Counted()
DELETED, NOT_DELETED = Counted(deleted_count=1), Counted()


def draft(**fields: Any) -> Draft:
    terms: Any = {"label": "a", "isolation": HOUR.total_seconds(), **fields}
    return Draft(name="thumbnail", version=1, queue="default", data={}, **terms)


def standing(**fields: Any) -> dict[str, Any]:
    """Returns the marker of another's enqueue of half an hour ago."""
    marker = {"_id": "thumbnail a", "token": "another's", "until": NOW + HOUR / 2, "job": given_job(_id=1, label="a")}
    return {**marker, **fields}


def unconfirmed(seconds: float, **fields: Any) -> dict[str, Any]:
    """Returns a marker that is void so many seconds from now."""
    return standing(void_at=NOW + timedelta(seconds=seconds), **fields)


def steps(commands: list[Command]) -> list[str]:
    return [
        f"{command.collection} {command.method}" if isinstance(command, Call) else f"{command.collection} find"
        for command in commands
        if isinstance(command, Call | Find)
    ]


def calls(commands: list[Command], collection: str) -> list[Call]:
    return [command for command in commands if isinstance(command, Call) and command.collection == collection]


MARK, INSERT, CONFIRM = f"{ISOLATIONS} update_one", f"{JOBS} insert_one", f"{ISOLATIONS} update_one"
UNMARK, LOOK, FIND_MARKER = f"{ISOLATIONS} delete_one", f"{JOBS} find", f"{ISOLATIONS} find"

both_ways = pytest.mark.parametrize("transactions", [True, False], ids=["transaction", "two steps"])


# The marker


def test_the_marker_keeps_the_job_and_lasts_from_the_upper_bound_of_server_time(clock: ScriptedClock) -> None:
    played = play(insert_isolated(draft(), clock, transactions=True), [MATCHED, None, None], clock=clock)

    (write,) = calls(played.commands, ISOLATIONS)
    fields = write.args[1]["$set"]
    assert write.args[0]["_id"] == "thumbnail a"
    assert write.kwargs == {"upsert": True}
    assert fields["until"] == NOW + DOUBT + HOUR
    assert fields["job"] == played.result.document


def test_a_window_lasts_from_the_jobs_birth_though_the_clock_is_set_back_meanwhile(clock: ScriptedClock) -> None:
    looks = iter([NOW, NOW - timedelta(seconds=1)])
    clock.earliest = clock.latest = lambda: next(looks, NOW - timedelta(seconds=1))  # type: ignore[method-assign]

    played = play(insert_isolated(draft(), clock, transactions=True), [MATCHED, None, None], clock=clock)

    (marking,) = calls(played.commands, ISOLATIONS)
    assert marking.args[1]["$set"]["until"] == played.result.document["created_at"] + HOUR


def test_a_task_is_isolated_as_a_whole_where_there_is_no_label(clock: ScriptedClock) -> None:
    played = play(insert_isolated(draft(label=None), clock, transactions=True), [MATCHED, None, None], clock=clock)

    assert calls(played.commands, ISOLATIONS)[0].args[0]["_id"] == "thumbnail"


@pytest.mark.parametrize(
    ("marker", "taken"),
    [
        (standing(until=NOW), True),
        (standing(until=NOW + timedelta(milliseconds=1)), False),
        (unconfirmed(-60, until=NOW - HOUR), False),
    ],
    ids=["passed", "not passed", "never confirmed"],
)
def test_a_marker_is_written_over_one_that_was_confirmed_and_has_passed(
    clock: ScriptedClock, marker: dict[str, Any], taken: bool
) -> None:
    played = play(insert_isolated(draft(), clock, transactions=True), [MATCHED, None, None], clock=clock)

    assert matches(calls(played.commands, ISOLATIONS)[0].args[0], marker) is taken


# Where one stands


@both_ways
def test_a_marker_that_stands_refuses_the_enqueue_and_says_until_when(clock: ScriptedClock, transactions: bool) -> None:
    rule = insert_isolated(draft(), clock, transactions=transactions)

    with pytest.raises(Isolated) as raised:
        play(rule, [DuplicateKey(), [standing()]], clock=clock)

    assert (raised.value.until, raised.value.existing_id, raised.value.label) == (NOW + HOUR / 2, 1, "a")


@both_ways
@pytest.mark.parametrize("gone", [False, True], ids=["there", "gone"])
def test_a_conflict_that_is_ignored_returns_the_job_or_what_the_marker_keeps_of_it(
    clock: ScriptedClock, transactions: bool, gone: bool
) -> None:
    ended = given_job(_id=1, state="completed", available_at=None)
    rule = insert_isolated(draft(on_conflict="ignore"), clock, transactions=transactions)

    played = play(rule, [DuplicateKey(), [standing()], [] if gone else [ended]], clock=clock)

    assert played.result == Stored(standing()["job"] | {} if gone else ended, created=False)


@both_ways
def test_a_marker_that_has_gone_by_the_time_it_is_read_is_no_hindrance(
    clock: ScriptedClock, transactions: bool
) -> None:
    tail: list[Any] = [None] if transactions else [MATCHED]
    again: list[Any] = [] if transactions else [MISSED]

    played = play(
        insert_isolated(draft(), clock, transactions=transactions),
        [DuplicateKey(), [], *again, MATCHED, None, *tail],
        clock=clock,
    )

    assert played.result.created is True


@both_ways
@pytest.mark.parametrize("there", [True, False])
def test_a_void_marker_is_confirmed_where_its_job_is_there_and_taken_away_where_not(
    clock: ScriptedClock, transactions: bool, there: bool
) -> None:
    void = unconfirmed(-1)
    found: list[Any] = [{"_id": 1}] if there else []
    again: list[Any] = [] if transactions else [MISSED]
    seen: list[Command] = []

    with pytest.raises(Isolated):
        play(
            insert_isolated(draft(), clock, transactions=transactions),
            [DuplicateKey(), [void], found, MATCHED if there else DELETED, *again, DuplicateKey(), [standing()]],
            clock=clock,
            seen=seen,
        )

    write = calls(seen, ISOLATIONS)[1]
    assert write.method == ("update_one" if there else "delete_one")
    assert matches(write.args[0], void)
    assert not matches(write.args[0], {**void, "token": "a third's"})
    assert not matches(write.args[0], {**void, "void_at": NOW + HOUR})


def test_a_marker_under_way_refuses_until_it_is_void(clock: ScriptedClock) -> None:
    with pytest.raises(Isolated) as raised:
        play(insert_isolated(draft(), clock, transactions=False), [DuplicateKey(), [unconfirmed(20)]], clock=clock)

    assert raised.value.until == NOW + timedelta(seconds=20)


def test_who_ignores_conflicts_waits_for_a_marker_under_way_and_never_promises_a_job_that_may_not_come(
    clock: ScriptedClock,
) -> None:
    under_way = unconfirmed(0.25)
    rule = insert_isolated(draft(on_conflict="ignore"), clock, transactions=True)
    held: list[Any] = [DuplicateKey(), [under_way]]

    played = play(rule, [*held * 4, [], DELETED, MATCHED, None, None], clock=clock)

    assert played.result.created is True
    assert clock.elapsed >= 0.25


def test_who_ignores_conflicts_waits_no_longer_than_a_marker_may_stand(clock: ScriptedClock) -> None:
    def renewed(_: Any) -> Any:
        return [unconfirmed(clock.elapsed + 20)]

    def reply(command: Any) -> Any:
        if isinstance(command, Find):
            return renewed(command)
        raise DuplicateKey

    with pytest.raises(Isolated):
        play(insert_isolated(draft(on_conflict="ignore"), clock, transactions=True), [reply, ...], clock=clock)

    assert VOID_AFTER <= clock.elapsed < VOID_AFTER + 2


# In a transaction


def test_the_marker_and_the_job_are_written_in_one_transaction(clock: ScriptedClock) -> None:
    played = play(insert_isolated(draft(), clock, transactions=True), [MATCHED, None, None], clock=clock)

    assert isinstance(played.commands[0], Transaction)
    assert steps(played.commands) == [MARK, INSERT]
    assert "void_at" not in calls(played.commands, ISOLATIONS)[0].args[1]["$set"]


def test_a_lost_commit_is_known_by_its_own_marker_even_where_the_job_has_come_and_gone(clock: ScriptedClock) -> None:
    written: list[Any] = []

    def mark(call: Call) -> Any:
        written.append({"_id": call.args[0]["_id"], **call.args[1]["$set"]})
        return MATCHED

    played = play(
        insert_isolated(draft(), clock, transactions=True),
        [mark, None, UNANSWERED, DuplicateKey(), lambda _: written],
        clock=clock,
    )

    assert played.result.created is True
    assert played.result.document == written[0]["job"]


def test_a_lost_commit_that_did_not_happen_is_sent_again_with_the_same_id(clock: ScriptedClock) -> None:
    replies = [MATCHED, None, UNANSWERED, MATCHED, None, None]

    played = play(insert_isolated(draft(), clock, transactions=True), replies, clock=clock)

    ids = {call.args[0]["_id"] for call in calls(played.commands, JOBS)}
    assert ids == {played.result.document["_id"]}


def test_a_label_that_is_taken_refuses_the_transaction(clock: ScriptedClock) -> None:
    rule = insert_isolated(draft(), clock, transactions=True)

    with pytest.raises(LabelTaken) as raised:
        play(rule, [MATCHED, DuplicateKey(), [], [{"_id": 7}]], clock=clock)

    assert raised.value.existing_id == 7


@both_ways
def test_an_enqueue_that_stays_unanswered_is_unknown_by_its_id(clock: ScriptedClock, transactions: bool) -> None:
    with pytest.raises(EnqueueUnknown) as raised:
        play(insert_isolated(draft(id="x"), clock, transactions=transactions), [UNANSWERED, ...], clock=clock)

    assert raised.value.ids == ["x"]


@both_ways
def test_a_server_that_cannot_be_reached_has_stored_nothing(clock: ScriptedClock, transactions: bool) -> None:
    with pytest.raises(StoreUnavailable):
        play(insert_isolated(draft(), clock, transactions=transactions), [UNSENT, ...], clock=clock)


# In two steps


def test_without_transactions_the_marker_comes_first_and_is_confirmed_last(clock: ScriptedClock) -> None:
    played = play(insert_isolated(draft(), clock, transactions=False), [MATCHED, None, MATCHED], clock=clock)

    mark, confirm = calls(played.commands, ISOLATIONS)
    void_at = mark.args[1]["$set"]["void_at"]
    assert steps(played.commands) == [MARK, INSERT, CONFIRM]
    assert timedelta(seconds=VOID_AFTER) <= void_at - NOW <= timedelta(seconds=VOID_AFTER) + DOUBT
    assert confirm.args[1] == {"$set": {"until": NOW + DOUBT + HOUR}, "$unset": {"void_at": ""}}
    assert matches(confirm.args[0], {"_id": "thumbnail a", "token": mark.args[1]["$set"]["token"]})
    assert not matches(confirm.args[0], standing())


def test_a_marker_is_not_removed_by_its_time_before_it_is_void(clock: ScriptedClock) -> None:
    played = play(
        insert_isolated(draft(isolation=1.0), clock, transactions=False), [MATCHED, None, MATCHED], clock=clock
    )

    mark, confirm = calls(played.commands, ISOLATIONS)
    written: datetime = mark.args[1]["$set"]["until"]
    assert written == mark.args[1]["$set"]["void_at"]
    assert confirm.args[1]["$set"]["until"] < written


@pytest.mark.parametrize(
    "lost",
    [
        pytest.param([UNSENT, MISSED, MATCHED, None, MATCHED], id="mark unsent"),
        pytest.param([UNANSWERED, MISSED, MATCHED, None, MATCHED], id="mark lost"),
        pytest.param([UNANSWERED, MATCHED, None, MATCHED], id="mark done without an answer"),
        pytest.param([MATCHED, UNSENT, MATCHED, None, MATCHED], id="insert unsent"),
        pytest.param([MATCHED, UNANSWERED, MATCHED, None, MATCHED], id="insert lost"),
        pytest.param([MATCHED, UNANSWERED, MATCHED, DuplicateKey(), "own", MATCHED], id="insert done"),
        pytest.param([MATCHED, None, UNSENT, MATCHED, DuplicateKey(), "own", MATCHED], id="confirm unsent"),
        pytest.param([MATCHED, None, UNANSWERED, MATCHED, DuplicateKey(), "own", MATCHED], id="confirm lost"),
    ],
)
def test_whatever_reply_is_lost_one_job_is_stored_and_its_marker_confirmed(
    clock: ScriptedClock, lost: list[Any]
) -> None:
    def own(find: Find) -> Any:
        return [given_job(_id=find.filter["_id"], created_at=NOW)]

    replies = [own if reply == "own" else reply for reply in lost]

    played = play(insert_isolated(draft(), clock, transactions=False), replies, clock=clock)

    ids = {call.args[0]["_id"] for call in calls(played.commands, JOBS)}
    assert played.result.created is True
    assert ids == {played.result.document["_id"]}
    assert "$unset" in calls(played.commands, ISOLATIONS)[-1].args[1]


def test_a_marker_is_renewed_before_an_insert_is_sent_again(clock: ScriptedClock) -> None:
    clock_moves = [MATCHED, UNANSWERED, MATCHED, None, MATCHED]

    played = play(insert_isolated(draft(), clock, transactions=False), clock_moves, clock=clock)

    mark, renewal, _ = calls(played.commands, ISOLATIONS)
    assert renewal.args[1]["$set"]["void_at"] > mark.args[1]["$set"]["void_at"]


def test_a_confirmation_that_never_left_leaves_it_unknown_not_unstored(clock: ScriptedClock) -> None:
    def reply(command: Any) -> Any:
        if isinstance(command, Call) and command.collection == ISOLATIONS and "$unset" in command.args[1]:
            raise StoreUnavailable("h", "no server", sent=False)
        if isinstance(command, Call) and command.method == "insert_one" and clock.elapsed:
            raise DuplicateKey
        if isinstance(command, Find):
            return [given_job(_id=command.filter["_id"], created_at=NOW)]
        return MATCHED

    with pytest.raises(EnqueueUnknown):
        play(insert_isolated(draft(), clock, transactions=False), [reply, ...], clock=clock)


@pytest.mark.parametrize("ignoring", [False, True])
def test_a_label_that_is_taken_takes_the_marker_away_again(clock: ScriptedClock, ignoring: bool) -> None:
    holder, seen = given_job(label="a"), []  # type: tuple[dict[str, Any], list[Command]]
    rule = insert_isolated(draft(on_conflict="ignore" if ignoring else "raise"), clock, transactions=False)
    replies = [MATCHED, DuplicateKey(), [], DELETED, [], [holder]]

    if ignoring:
        assert play(rule, replies, clock=clock, seen=seen).result == Stored(holder, created=False)
    else:
        with pytest.raises(LabelTaken):
            play(rule, replies, clock=clock, seen=seen)

    assert steps(seen) == [MARK, INSERT, LOOK, UNMARK, LOOK, LOOK]


def test_an_id_that_was_there_before_takes_the_marker_away_again(clock: ScriptedClock) -> None:
    before = given_job(_id="x")
    rule = insert_isolated(draft(id="x"), clock, transactions=False)

    played = play(rule, [MATCHED, DuplicateKey(), [before], DELETED], clock=clock)

    assert played.result == Stored(before, created=False)


def test_a_job_that_came_after_its_marker_was_void_is_taken_back(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(Isolated):
        play(
            insert_isolated(draft(), clock, transactions=False),
            [MATCHED, None, MISSED, DELETED, [standing()]],
            clock=clock,
            seen=seen,
        )

    (_, withdrawal) = calls(seen, JOBS)
    identity = withdrawal.args[0]["_id"]
    assert matches(withdrawal.args[0], given_job(_id=identity))
    assert not matches(withdrawal.args[0], given_job(_id=identity, state="dequeued", attempts=1, lost=1))


def test_a_job_that_came_late_and_has_started_is_left_to_run(clock: ScriptedClock) -> None:
    rule = insert_isolated(draft(), clock, transactions=False)

    played = play(rule, [MATCHED, None, MISSED, NOT_DELETED], clock=clock)

    assert played.result.created is True


# In the caller's transaction


def test_joined_all_is_looked_up_before_anything_is_written(clock: ScriptedClock) -> None:
    played = play(insert_isolated_joined(draft(), clock), [[], [], MATCHED, None])

    assert steps(played.commands) == [FIND_MARKER, LOOK, MARK, INSERT]
    assert played.result.created is True


@pytest.mark.parametrize(
    ("replies", "error"),
    [([[standing()]], Isolated), ([[unconfirmed(10)]], Isolated), ([[], [{"_id": 7}]], LabelTaken)],
    ids=["marked", "under way", "label taken"],
)
def test_joined_a_conflict_writes_nothing_and_aborts_nothing(
    clock: ScriptedClock, replies: list[Any], error: type[LabelTaken]
) -> None:
    seen: list[Command] = []

    with pytest.raises(error) as raised:
        play(insert_isolated_joined(draft(), clock), replies, seen=seen)

    assert type(raised.value) is error
    assert raised.value.aborted is False
    assert all(isinstance(command, Find) for command in seen)


def test_joined_a_void_marker_makes_way(clock: ScriptedClock) -> None:
    played = play(insert_isolated_joined(draft(), clock), [[unconfirmed(-1)], [], DELETED, [], MATCHED, None])

    assert played.result.created is True


@pytest.mark.parametrize(
    ("replies", "error"),
    [([[], [], DuplicateKey()], Isolated), ([[], [], MATCHED, DuplicateKey()], LabelTaken)],
    ids=["marked", "label taken"],
)
def test_joined_what_is_taken_in_between_aborts_the_transaction_and_says_so(
    clock: ScriptedClock, replies: list[Any], error: type[LabelTaken]
) -> None:
    with pytest.raises(error, match="the transaction is aborted") as raised:
        play(insert_isolated_joined(draft(), clock), replies)

    assert type(raised.value) is error
    assert raised.value.aborted is True
