"""The tests are tested: a mistake in the fence or the state machine does not go unnoticed.

`AXEQ_FULL=1` makes every mistake that `mutation_sites` knows, one after the other, and prints the survivors;
`AXEQ_MUTANTS=0:40` makes some of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .mutation_sites import Mutant, mutants, without_key
from .mutation_trial import FENCE_TESTS, ROOT, STATE_TESTS, copied, failing

FENCED = ("rules/lifecycle", "rules/settlement")
MACHINE = ("words/states", "rules/settlement", "rules/lifecycle")
KILLED = 0.9


def source(module: str) -> str:
    return (ROOT / "axeq" / f"{module}.py").read_text()


def all_mutants() -> list[Mutant]:
    found = [mutant for module in MACHINE for mutant in mutants(module, source(module))]
    start, _, end = os.environ.get("AXEQ_MUTANTS", ":").partition(":")
    return found[int(start or 0) : int(end) if end else None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("mutants"))


def test_the_copy_without_a_mistake_passes(folder: Path) -> None:
    assert failing(folder, {}, FENCE_TESTS) == []


def test_taking_the_token_out_of_the_fence_fails_tests_by_name(folder: Path) -> None:
    changed = {module: without_key(source(module), "claim.token") for module in FENCED}

    failed = set(failing(folder, changed, FENCE_TESTS))

    assert failed >= {
        "test_no_outcome_changes_a_job_that_is_no_longer_held",
        "test_an_extension_reaches_only_what_is_still_held_and_never_shortens",
        "test_an_unanswered_claim_is_extended_before_it_is_read_back",
        "test_no_short_interleaving_breaks_a_promise",
    }


@pytest.mark.parametrize(
    ("module", "key"), [("rules/settlement", "state"), ("rules/lifecycle", "available_at"), ("rules/lifecycle", "lost")]
)
def test_taking_a_guard_out_fails_tests(folder: Path, module: str, key: str) -> None:
    failed = failing(folder, {module: without_key(source(module), key)}, FENCE_TESTS)

    assert len(set(failed)) >= 2, failed


@pytest.mark.skipif(not os.environ.get("AXEQ_FULL"), reason="takes some minutes: AXEQ_FULL=1 runs it")
def test_nine_of_ten_mistakes_in_the_state_machine_fail_a_test(folder: Path) -> None:
    tried = all_mutants()

    survivors = [
        mutant for mutant in tried if not failing(folder, {mutant.module: mutant.source}, STATE_TESTS, first=True)
    ]

    print(f"\n{len(tried) - len(survivors)} of {len(tried)} mistakes found; not found:")
    print("\n".join(map(str, survivors)))
    assert len(survivors) <= (1 - KILLED) * len(tried)
