"""Groups: which calls waiting jobs make, and when each is ready."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from bson import ObjectId
from hypothesis import given
from hypothesis import strategies as st

import axeq
from axeq.rules.due import Candidate
from axeq.rules.group import LARGEST_GROUP, Arrival, Gathering, Group, arrivals, gather
from axeq.rules.lifecycle import claim_many
from axeq.rules.outcome import Completed, Failed, Limits, Released
from axeq.rules.settlement import settle, settlements
from axeq.wire.wire import Find
from axeq.words.errors import ConfigurationError

from .playing import NOW, Counted, ScriptedClock, given_job, held_record, play, with_token_of

TERMS = Group(grace=10, max_delay=30, max_size=5)
ERROR = {"type": "ValueError", "message": "", "traceback": ""}
seconds_ago = st.integers(0, 100)


def arrival(ago: float = 0, *, group: str | None = "g", lost: int = 0, priority: int = 0) -> Arrival:
    moment = NOW - timedelta(seconds=ago)
    return Arrival(Candidate(ObjectId(), "probe", priority, moment, 1, lost), group)


waiting = st.lists(
    st.builds(
        arrival,
        seconds_ago,
        group=st.sampled_from(["a", "b", None]),
        lost=st.sampled_from([0, 0, 0, 1, 2, 3]),
        priority=st.integers(-1, 1),
    ),
    max_size=40,
)
terms = st.builds(
    Group,
    grace=st.integers(0, 20),
    max_delay=st.none() | st.integers(0, 60),
    max_size=st.integers(1, 8),
)
most_lost = st.none() | st.integers(0, 5)


def members(gathering: Gathering) -> list[Any]:
    return [candidate.id for candidate in gathering.candidates]


def fresh(gatherings: Sequence[Gathering]) -> list[Gathering]:
    return [gathering for gathering in gatherings if gathering.lost == 0]


@given(waiting, terms, most_lost)
def test_each_job_is_in_exactly_one_call(found: list[Arrival], group: Group, max_lost: int | None) -> None:
    gatherings = gather(found, group, max_lost=max_lost)

    counted = Counter(identity for gathering in gatherings for identity in members(gathering))
    assert counted == Counter(each.candidate.id for each in found)


@given(waiting, terms, most_lost)
def test_a_call_takes_jobs_of_one_group_that_lost_equally_many_leases_and_no_more_than_its_size(
    found: list[Arrival], group: Group, max_lost: int | None
) -> None:
    group_of = {each.candidate.id: each.group for each in found}

    for gathering in gather(found, group, max_lost=max_lost):
        assert {group_of[identity] for identity in members(gathering)} == {gathering.group}
        assert len({candidate.lost for candidate in gathering.candidates}) == 1
        assert 1 <= len(gathering.candidates) <= group.max_size


@given(waiting, terms, most_lost)
def test_what_may_be_poison_is_alone(found: list[Arrival], group: Group, max_lost: int | None) -> None:
    for gathering in gather(found, group, max_lost=max_lost):
        if gathering.lost > 1 or (gathering.lost == 1 and max_lost is not None and max_lost < 2):
            assert len(gathering.candidates) == 1


@given(waiting, terms, most_lost)
def test_what_lost_its_worker_waits_for_nothing(found: list[Arrival], group: Group, max_lost: int | None) -> None:
    for gathering in gather(found, group, max_lost=max_lost):
        if gathering.lost:
            assert gathering.ready_at <= NOW


@given(waiting, terms)
def test_a_call_is_ready_by_its_grace_or_its_delay_and_never_before_its_last_job(
    found: list[Arrival], group: Group
) -> None:
    for gathering in fresh(gather(found, group, max_lost=5)):
        came = [candidate.available_at for candidate in gathering.candidates]
        full = len(came) == group.max_size
        assert gathering.ready_at == (max(came) if full else group.ready_at(min(came), max(came)))
        assert full or gathering.ready_at <= max(came) + group.patience or gathering.ready_at <= NOW


@given(st.lists(seconds_ago, min_size=1, max_size=4), seconds_ago)
def test_a_job_that_comes_later_puts_its_group_off_but_not_beyond_the_delay(ages: list[int], late: int) -> None:
    before = [arrival(age) for age in ages]
    later = arrival(min([late, *ages]))
    patient = Group(grace=10, max_delay=30, max_size=100)

    (first,) = gather(before, patient, max_lost=5)
    (then,) = gather([*before, later], patient, max_lost=5)

    assert first.ready_at <= then.ready_at
    assert then.ready_at <= NOW - timedelta(seconds=max(ages)) + timedelta(seconds=30)


def test_what_is_more_than_a_call_takes_waits_on_the_last_to_come() -> None:
    found = [arrival(age) for age in (9, 8, 7, 6, 5, 1, 0)]

    full, rest = gather(found, TERMS, max_lost=5)

    assert (len(full.candidates), full.ready_at) == (5, NOW - timedelta(seconds=5))
    assert (len(rest.candidates), rest.ready_at) == (2, NOW + timedelta(seconds=10))


def test_a_call_takes_the_urgent_first_and_then_the_first_to_come() -> None:
    late, early, urgent = arrival(1), arrival(2), arrival(0, priority=-1)

    (gathering,) = gather([late, early, urgent], TERMS, max_lost=5)

    assert members(gathering) == [each.candidate.id for each in (urgent, early, late)]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"grace": -1}, "grace"),
        ({"grace": "soon"}, "grace"),
        ({"max_delay": -1}, "max_delay"),
        ({"max_size": 0}, "from 1 to 5,000"),
        ({"max_size": LARGEST_GROUP + 1}, "from 1 to 5,000"),
        ({"max_size": True}, "from 1 to 5,000"),
        ({"max_size": 2.5}, "from 1 to 5,000"),
    ],
)
def test_a_group_that_cannot_work_is_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Group(**options)


def test_a_group_takes_durations_of_both_kinds() -> None:
    group = Group(grace=timedelta(minutes=1), max_delay=90)

    assert (group.grace, group.max_delay, group.max_size) == (60.0, 90.0, 1000)


def test_a_tasks_group_must_be_one() -> None:
    class Piece(axeq.Model[None], name="piece"):
        pass

    async def handler(ctx: axeq.Context[Piece, None]) -> None: ...

    with pytest.raises(ConfigurationError, match=r"axeq\.Group"):
        axeq.Task(Piece, handler, group="name")  # type: ignore[arg-type]


# What is read and written


def test_who_waits_is_read_in_one_bounded_page() -> None:
    found = [given_job(group="g"), given_job(), given_job(group=7)]

    script = play(arrivals("default", {"thumbnail": 1, "other": 2}, NOW), [found])

    (find,) = script.asked
    assert isinstance(find, Find)
    assert find.limit == LARGEST_GROUP
    assert [each.group for each in script.result] == ["g", None, None]


def test_a_job_that_is_newer_than_its_tasks_model_is_passed_over() -> None:
    found = [given_job(version=2), given_job(version=1)]

    script = play(arrivals("default", {"thumbnail": 1, "other": 2}, NOW), [found])

    assert [each.candidate.version for each in script.result] == [1]


def test_tasks_of_which_very_many_wait_are_read_one_by_one() -> None:
    page = [given_job()] * LARGEST_GROUP

    script = play(arrivals("default", {"thumbnail": 1, "other": 1}, NOW), [page, page, []])

    assert [find.filter["name"] for find in script.asked] == [{"$in": ["thumbnail", "other"]}, "thumbnail", "other"]


def test_jobs_whose_worker_died_are_claimed_together_without_an_attempt() -> None:
    clock, document = ScriptedClock(), given_job(lost=1)

    script = play(
        claim_many([document["_id"]], clock, worker="w", lease=30, patience=2, lost=1),
        [Counted(1), with_token_of(document)],
        clock=clock,
    )

    update = script.asked[0]
    assert not isinstance(update, Find)
    query, change = update.args
    assert query["lost"] == 1
    assert change["$inc"] == {"lost": 1}


def claimed_together(count: int, **fields: Any) -> list[Any]:
    claim = {"token": ObjectId(), "worker": "w"}
    return [held_record(claim=claim, **fields) for _ in range(count)]


def outcome_writes(outcomes: list[tuple[Any, Any]]) -> Any:
    entries = settlements(outcomes, Limits(), ScriptedClock(), started_at=NOW, ended_at=NOW)
    script = play(settle(entries, ScriptedClock()), [Counted(len(outcomes))])
    (command,) = script.asked
    return command


def test_jobs_that_complete_together_with_one_result_are_one_statement() -> None:
    records, outcome = claimed_together(100), Completed({"made": 100})

    command = outcome_writes([(record, outcome) for record in records])

    assert command.method == "update_many"
    assert set(command.args[0]["_id"]["$in"]) == {record.id for record in records}
    assert command.args[1]["$set"]["result"] == {"made": 100}


def test_jobs_that_fail_together_are_one_statement_for_each_number_of_attempts() -> None:
    first, second = claimed_together(10, attempts=1), claimed_together(10, attempts=2)
    once, twice = Failed(ERROR), Failed(ERROR)

    command = outcome_writes([(record, once) for record in first] + [(record, twice) for record in second])

    assert [len(write.filter["_id"]["$in"]) for write in command.args[0]] == [10, 10]


def test_jobs_of_different_claims_never_share_a_write() -> None:
    one, other = claimed_together(1)[0], claimed_together(1)[0]
    outcome = Completed()

    entries = settlements([(one, outcome), (other, outcome)], Limits(), ScriptedClock(), started_at=NOW, ended_at=NOW)

    assert [entry.token for entry in entries] == [one.token, other.token]


def test_a_job_given_back_keeps_its_place_in_its_group() -> None:
    (record,) = claimed_together(1)
    came = NOW - timedelta(minutes=5)

    (entry,) = settlements([(record, Released("shutdown", came))], Limits(), ScriptedClock())

    assert entry.update["$set"]["available_at"] == came


def test_a_job_that_somebody_cancelled_meanwhile_ends_so_with_its_own_reason() -> None:
    records = claimed_together(3)
    outcome = Failed(ERROR)
    entries = settlements([(record, outcome) for record in records], Limits(), ScriptedClock())

    ended = [entry.cancelled(f"reason {number}") for number, entry in enumerate(entries)]

    assert [entry.id for entry in ended] == [record.id for record in records]
    assert [entry.update["$push"]["events"]["$each"][0]["reason"] for entry in ended] == [
        "reason 0",
        "reason 1",
        "reason 2",
    ]
