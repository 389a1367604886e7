"""The state machine, edge by edge: what each verb leads from, and to."""

from __future__ import annotations

import pytest

from axeq.words.states import TRANSITIONS, sources

EDGES = {
    "dequeue": ({"enqueued", "failed", "dequeued"}, "dequeued"),
    "complete": ({"dequeued"}, "completed"),
    "fail": ({"dequeued"}, "failed"),
    "snooze": ({"dequeued"}, "enqueued"),
    "release": ({"dequeued"}, "enqueued"),
    "cancel": ({"enqueued", "failed", "dequeued"}, "cancelled"),
    "retry": ({"completed", "cancelled", "failed"}, "enqueued"),
    "replace": ({"enqueued", "failed", "dequeued"}, "enqueued"),
}


def test_there_is_no_other_verb() -> None:
    assert TRANSITIONS.keys() == EDGES.keys()


@pytest.mark.parametrize("verb", EDGES)
def test_a_verb_leads_from_its_states_to_its_own_and_nowhere_else(verb: str) -> None:
    origins, target = EDGES[verb]

    assert set(sources(verb)) == origins
    assert TRANSITIONS[verb].target == target
