"""Live pools: what each serves, and who is whose rival."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from axeq.rules.workers import Serving, announce, leave, live

from .playing import NOW, ScriptedClock, matches, play


def said(worker: str, queues: list[str], names: list[str], **fields: Any) -> dict[str, Any]:
    return {"_id": worker, "queues": queues, "names": names, "seen_at": NOW, **fields}


def test_a_pool_says_what_it_serves_and_hears_of_all_who_share_a_queue() -> None:
    others = [said("me", ["a", "b"], ["x"]), said("you", ["b"], ["x", "y"], others=["z"])]

    played = play(announce("me", Serving(["a", "b"], ["x"]), ScriptedClock()), [None, others])

    word, read = played.asked
    assert word.args[1]["$set"] == {"queues": ["a", "b"], "names": ["x"], "seen_at": NOW}  # type: ignore[union-attr]
    assert [matches(read.filter, other) for other in others] == [True, True]  # type: ignore[union-attr]
    assert played.result == {"you": Serving(["b"], ["x", "y"], ["z"])}


def test_pools_of_other_queues_and_silent_ones_are_not_heard() -> None:
    (read,) = play(live(["a", "b"], ScriptedClock()), [[]]).asked
    silent = said("silent", ["a"], ["x"])
    silent["seen_at"] = NOW - timedelta(seconds=13)

    assert not matches(read.filter, said("elsewhere", ["c"], ["x"]))
    assert not matches(read.filter, silent)
    assert matches(read.filter, said("here", ["c", "a"], ["x"]))


def test_names_that_a_pool_runs_for_lack_of_a_task_are_said_apart() -> None:
    played = play(announce("me", Serving(["a"], ["x"], ["strange"]), ScriptedClock()), [None, []])

    assert played.asked[0].args[1]["$set"]["others"] == ["strange"]  # type: ignore[union-attr]


def test_a_pool_that_leaves_forgets_those_that_went_without_a_word() -> None:
    (word,) = play(leave("me", ScriptedClock()), [None]).asked
    gone = said("gone", ["a"], ["x"])
    gone["seen_at"] = NOW - timedelta(hours=2)

    assert matches(word.args[0], said("me", ["a"], ["x"]))  # type: ignore[union-attr]
    assert matches(word.args[0], gone)  # type: ignore[union-attr]
    assert not matches(word.args[0], said("you", ["a"], ["x"]))  # type: ignore[union-attr]
