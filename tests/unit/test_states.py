"""The state machine as data."""

from __future__ import annotations

import typing

import pytest

from axeq.documents.failure import failure
from axeq.faces.options import StateOrName
from axeq.rules.enqueue import Draft
from axeq.rules.outcome import Cancelled, Completed, Failed, Limits, Outcome, Released, Snoozed
from axeq.rules.settlement import settlement
from axeq.words.states import FINAL, LIVE, TRANSITIONS, Cause, State, sources

from .playing import ScriptedClock, held_record

OUTCOMES: dict[str, Outcome] = {
    "complete": Completed(),
    "fail": Failed(failure("E", "x")),
    "cancel": Cancelled(Cause.HANDLER),
    "snooze": Snoozed(1.0),
    "release": Released(),
}


def test_a_state_is_live_or_final_and_never_both() -> None:
    assert set(State) == LIVE | FINAL
    assert set() == LIVE & FINAL
    assert {State.COMPLETED, State.CANCELLED} == FINAL


@pytest.mark.parametrize("verb", TRANSITIONS)
def test_only_a_retry_by_hand_leaves_a_final_state(verb: str) -> None:
    leaves_a_final_state = bool(TRANSITIONS[verb].sources & FINAL)

    assert leaves_a_final_state is (verb == "retry")


@pytest.mark.parametrize("state", State)
def test_every_state_can_be_reached_and_left(state: State) -> None:
    reached = {transition.target for transition in TRANSITIONS.values()}
    left = set().union(*(transition.sources for transition in TRANSITIONS.values()))

    assert state in reached
    assert state in left


def test_no_verb_but_dequeue_leads_to_a_worker() -> None:
    assert [verb for verb, transition in TRANSITIONS.items() if transition.target is State.DEQUEUED] == ["dequeue"]


@pytest.mark.parametrize("verb", ["complete", "fail", "snooze", "release"])
def test_what_a_worker_reports_is_of_a_job_that_it_holds(verb: str) -> None:
    assert TRANSITIONS[verb].sources == {State.DEQUEUED}


@pytest.mark.parametrize("verb", OUTCOMES)
def test_every_outcome_is_written_as_the_table_says(verb: str) -> None:
    entry = settlement(held_record(), OUTCOMES[verb], Limits(), ScriptedClock())

    assert entry.verb == verb
    assert entry.update["$set"]["state"] == TRANSITIONS[verb].target.value
    assert entry.write.filter["state"] == State.DEQUEUED.value


@pytest.mark.parametrize("verb", OUTCOMES)
def test_a_live_state_is_written_with_a_due_time_and_a_final_one_without(verb: str) -> None:
    update = settlement(held_record(), OUTCOMES[verb], Limits(), ScriptedClock()).update
    live = TRANSITIONS[verb].target in LIVE

    assert ("available_at" in update["$set"]) is live
    assert ("available_at" in update.get("$unset", {})) is not live


def test_a_new_job_is_live_and_has_a_due_time() -> None:
    document = Draft(name="n", version=1, queue="q", data={}).document(ScriptedClock(), ScriptedClock().earliest())

    assert State(document["state"]) in LIVE
    assert "available_at" in document


def test_sources_are_plain_text_in_a_fixed_order() -> None:
    assert sources("retry") == ["cancelled", "completed", "failed"]
    assert {type(state) for state in sources("cancel")} <= {State, str}


def test_type_checkers_know_every_state_by_its_name() -> None:
    _, names = typing.get_args(StateOrName)

    assert [State(name) for name in typing.get_args(names)] == list(State)
