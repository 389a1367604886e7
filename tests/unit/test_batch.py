"""The enqueue of many jobs on canned replies: in one command, all or none, or around what is taken."""

from __future__ import annotations

from typing import Any

import pytest
from bson.objectid import ObjectId

from axeq.rules.batch import insert_around, insert_joined, insert_many, insert_together
from axeq.rules.enqueue import Draft, Stored
from axeq.wire.wire import Call, Command, Find, Transaction
from axeq.words.errors import DuplicateKey, EnqueueUnknown, LabelTaken, StoreUnavailable

from .playing import UNANSWERED, UNSENT, ScriptedClock, given_job, play


def draft(**fields: Any) -> Draft:
    return Draft(**{"name": "thumbnail", "version": 1, "queue": "default", "data": {"image": "a.jpg"}, **fields})


def inserted(commands: list[Command]) -> list[Any]:
    return [command.args[0] for command in commands if isinstance(command, Call)]


def finds(commands: list[Command]) -> list[Find]:
    return [command for command in commands if isinstance(command, Find)]


# Without labels


def test_many_jobs_go_in_one_command_and_come_back_in_order(clock: ScriptedClock) -> None:
    drafts = [draft(id=number) for number in range(3)]

    played = play(insert_many(drafts, clock), [None], clock=clock)

    (call,) = played.asked
    assert isinstance(call, Call)
    assert (call.method, call.kwargs) == ("insert_many", {"ordered": False})
    assert [document["_id"] for document in played.result] == [0, 1, 2]


def test_a_repeated_batch_completes_what_the_lost_one_stored_in_part(clock: ScriptedClock) -> None:
    played = play(insert_many([draft(), draft()], clock), [UNANSWERED, DuplicateKey([0])], clock=clock)

    first, second = inserted(played.commands)
    assert first == second == played.result


@pytest.mark.parametrize("rule", [insert_many, insert_together, insert_around])
def test_a_batch_that_stays_unanswered_names_every_id(clock: ScriptedClock, rule: Any) -> None:
    seen: list[Command] = []

    with pytest.raises(EnqueueUnknown) as raised:
        play(rule([draft(), draft()], clock), [UNANSWERED, ...], clock=clock, seen=seen)

    assert raised.value.ids == [document["_id"] for document in inserted(seen)[0]]


# All or none


def test_a_batch_with_labels_is_one_insert_in_a_transaction(clock: ScriptedClock) -> None:
    played = play(insert_together([draft(label="a"), draft()], clock), [None, None], clock=clock)

    transaction, insert = played.commands
    assert isinstance(transaction, Transaction)
    assert isinstance(insert, Call)
    assert played.result == [Stored(document, created=True) for document in insert.args[0]]


def test_a_batch_whose_commit_was_lost_is_known_by_any_of_its_jobs(clock: ScriptedClock) -> None:
    replies = [None, UNANSWERED, DuplicateKey([0]), lambda find: [{"_id": find.filter["_id"]["$in"][0]}]]

    played = play(insert_together([draft(label="a"), draft(label="b")], clock), replies, clock=clock)

    assert [stored.created for stored in played.result] == [True, True]
    assert len(inserted(played.commands)) == 2


def test_a_batch_whose_commit_was_lost_is_known_though_its_first_job_is_gone(clock: ScriptedClock) -> None:
    drafts = [draft(label="a"), draft(label="b")]
    replies = [None, UNANSWERED, DuplicateKey([1]), the_last_of_those_asked_for]

    played = play(insert_together(drafts, clock), replies, clock=clock)

    assert [stored.created for stored in played.result] == [True, True]


def the_last_of_those_asked_for(find: Find) -> list[Any]:
    asked_for = find.filter["_id"]["$in"]
    return [{"_id": asked_for[-1]}] if len(asked_for) > 1 else []


def test_a_batch_whose_commit_was_lost_and_did_not_happen_is_sent_again(clock: ScriptedClock) -> None:
    replies = [None, UNANSWERED, None, None]

    played = play(insert_together([draft(label="a")], clock), replies, clock=clock)

    first, second = inserted(played.commands)
    assert first == second


@pytest.mark.parametrize("before", [[], [None, UNANSWERED]], ids=["at once", "after a lost commit"])
def test_a_label_that_is_taken_refuses_the_batch_and_names_its_holder(clock: ScriptedClock, before: list[Any]) -> None:
    holder = ObjectId()
    own = [[]] if before else []

    with pytest.raises(LabelTaken) as raised:
        play(
            insert_together([draft(label="a"), draft(label="b")], clock),
            [*before, DuplicateKey([1]), *own, [{"_id": holder}]],
            clock=clock,
        )

    assert (raised.value.label, raised.value.existing_id) == ("b", holder)


def test_a_label_whose_holder_has_just_ended_is_had_by_the_batch_after_all(clock: ScriptedClock) -> None:
    replies = [DuplicateKey([0]), [], None, None]

    played = play(insert_together([draft(label="a")], clock), replies, clock=clock)

    assert played.result[0].created is True


@pytest.mark.parametrize("rule", [insert_together, insert_joined])
def test_two_jobs_of_a_batch_with_one_label_are_refused_before_anything_is_sent(
    clock: ScriptedClock, rule: Any
) -> None:
    seen: list[Command] = []

    with pytest.raises(LabelTaken, match="'a'"):
        play(rule([draft(label="a"), draft(label="a")], clock), [], clock=clock, seen=seen)

    assert seen == []


def test_a_server_that_cannot_be_reached_has_stored_no_batch(clock: ScriptedClock) -> None:
    with pytest.raises(StoreUnavailable):
        play(insert_together([draft(label="a")], clock), [UNSENT, ...], clock=clock)


# Around those that are taken


def test_jobs_whose_labels_are_taken_come_back_as_those_that_have_them_in_order(clock: ScriptedClock) -> None:
    drafts = [draft(label="a"), draft(label="b"), draft()]
    holder = given_job(label="a")

    played = play(insert_around(drafts, clock), [DuplicateKey([0]), [holder]], clock=clock)

    (sent,) = inserted(played.commands)
    assert played.result == [Stored(holder, created=False), Stored(sent[1]), Stored(sent[2])]


def test_of_two_jobs_of_a_batch_with_one_label_both_are_the_first(clock: ScriptedClock) -> None:
    played = play(insert_around([draft(label="a"), draft(label="a")], clock), [None], clock=clock)

    ((sent,),) = inserted(played.commands)
    assert played.result == [Stored(sent, created=True), Stored(sent, created=False)]


def test_the_same_label_of_two_tasks_is_two_labels(clock: ScriptedClock) -> None:
    drafts = [draft(label="a"), draft(label="a", name="other")]
    others = given_job(label="a", name="other")

    played = play(insert_around(drafts, clock), [DuplicateKey([1]), [others]], clock=clock)

    assert [stored.created for stored in played.result] == [True, False]
    assert finds(played.commands)[0].filter["name"] == "other"


def test_labels_that_have_just_become_free_are_tried_again_without_the_others(clock: ScriptedClock) -> None:
    drafts = [draft(label="a"), draft(label="b")]

    played = play(insert_around(drafts, clock), [DuplicateKey([0]), [], None], clock=clock)

    first, second = inserted(played.commands)
    assert [document["label"] for document in first] == ["a", "b"]
    assert [document["label"] for document in second] == ["a"]
    assert [stored.created for stored in played.result] == [True, True]


def test_what_an_unanswered_try_has_stored_counts_as_stored_by_this_enqueue(clock: ScriptedClock) -> None:
    drafts = [draft(label="a"), draft(label="b")]
    holder = given_job(label="b")

    def the_first(find: Find) -> Any:
        return [{"_id": find.filter["_id"]["$in"][0]}]

    played = play(insert_around(drafts, clock), [UNANSWERED, DuplicateKey([0, 1]), the_first, [holder]], clock=clock)

    assert [stored.created for stored in played.result] == [True, False]
    assert played.result[1].document == holder


def test_a_lookup_asks_for_a_thousand_labels_at_most(clock: ScriptedClock) -> None:
    drafts = [draft(label=str(number)) for number in range(2500)]

    def holders(find: Find) -> Any:
        return [given_job(label=label) for label in find.filter["label"]["$in"]]

    played = play(insert_around(drafts, clock), [DuplicateKey(range(2500)), holders, holders, holders], clock=clock)

    assert [len(find.filter["label"]["$in"]) for find in finds(played.commands)] == [1000, 1000, 500]
    assert [stored.document["label"] for stored in played.result] == [str(number) for number in range(2500)]


# In the caller's transaction


def test_in_a_transaction_a_label_is_looked_up_before_anything_is_written(clock: ScriptedClock) -> None:
    holder, seen = ObjectId(), []  # type: tuple[ObjectId, list[Command]]

    with pytest.raises(LabelTaken) as raised:
        play(insert_joined([draft(label="a.jpg")], clock), [[{"_id": holder, "label": "a.jpg"}]], seen=seen)

    assert (raised.value.existing_id, raised.value.aborted) == (holder, False)
    assert inserted(seen) == []


def test_in_a_transaction_a_conflict_that_is_to_be_ignored_writes_nothing(clock: ScriptedClock) -> None:
    holder = given_job(label="a")

    played = play(insert_joined([draft(label="a")], clock, ignoring=True), [[holder]])

    assert played.result == [Stored(holder, created=False)]
    assert inserted(played.commands) == []


def test_in_a_transaction_a_free_label_is_inserted(clock: ScriptedClock) -> None:
    played = play(insert_joined([draft(label="a.jpg"), draft()], clock), [[], None])

    assert [[stored.document for stored in played.result]] == inserted(played.commands)


def test_in_a_transaction_jobs_that_are_stored_and_those_that_were_there_keep_their_order(
    clock: ScriptedClock,
) -> None:
    holder = given_job(label="b")

    played = play(
        insert_joined([draft(label="a"), draft(label="b"), draft(label="a")], clock, ignoring=True), [[holder], None]
    )

    ((sent,),) = inserted(played.commands)
    assert [stored.document for stored in played.result] == [sent, holder, sent]
    assert [stored.created for stored in played.result] == [True, False, False]


def test_a_label_taken_in_between_says_that_the_transaction_is_aborted(clock: ScriptedClock) -> None:
    drafts = [draft(), draft(label="a.jpg")]

    with pytest.raises(LabelTaken, match="the transaction is aborted") as raised:
        play(insert_joined(drafts, clock), [[], DuplicateKey([1])])

    assert (raised.value.label, raised.value.aborted) == ("a.jpg", True)


def test_in_a_transaction_nothing_is_sent_a_second_time(clock: ScriptedClock) -> None:
    seen: list[Command] = []

    with pytest.raises(StoreUnavailable):
        play(insert_joined([draft()], clock), [UNANSWERED], seen=seen)

    assert len(seen) == 1


def test_in_a_transaction_no_jobs_cost_no_command(clock: ScriptedClock) -> None:
    assert play(insert_joined([], clock), []).result == []
