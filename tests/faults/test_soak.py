"""The soak in small: what it finds it says, in its report and by its exit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import page, soak
from tests.faults.checker import Breach, Usage
from tests.faults.drift import Drift
from tests.faults.scale import FULL, own_server_is_slow
from tests.faults.seeds import SEED
from tests.faults.soak import Soak
from tests.faults.soak_report import PART, Course, Figures, render

pytestmark = pytest.mark.usefixtures("nothing_left")

MEBIBYTE = 1024 * 1024
STEADY = [0.01] * 300
DRIFTS: dict[str, tuple[list[float], list[Usage]]] = {
    "jobs wait longer and longer": ([*STEADY, *[6.0] * 300], []),
    "some jobs wait longer and longer": ([*STEADY, *[0.01, 30.0] * 150], []),
    "a process grows": (STEADY, [Usage(1, at, (100 + int(at)) * MEBIBYTE) for at in range(60)]),
    "a process opens more and more files": (STEADY, [Usage(1, at, MEBIBYTE, files=at) for at in range(60)]),
}


@pytest.mark.fault("F60")
def test_a_short_soak_has_no_breach_and_writes_its_report(tmp_path: Path) -> None:
    report = tmp_path / "reliability.md"
    report.write_text(f"# Ours\n\n{page.begin(PART)}\nold\n{page.end(PART)}\n\nBelow.\n")
    seconds, rate = (300, 200) if FULL else (10, 15 if own_server_is_slow() else 100)

    result = Soak(tmp_path, seconds=seconds, seed=SEED, rate=rate, processes=3).run()
    page.put(report, PART, render(result))

    assert list(map(str, result.breaches)) == []
    assert result.enqueued > 0
    assert result.completed == result.enqueued
    assert sum(result.course.faults.values()) > 0
    assert result.repeated <= result.allowed
    text = report.read_text()
    assert text.startswith("# Ours\n")
    assert text.endswith("Below.\n")
    assert "old" not in text


@pytest.mark.fault("F60")
@pytest.mark.parametrize("case", DRIFTS)
def test_a_soak_that_drifts_is_a_breach(case: str) -> None:
    assert len(list(Drift(*DRIFTS[case]).faults())) >= 1


@pytest.mark.fault("F60")
def test_a_soak_that_stays_as_it_was_is_none() -> None:
    usage = [Usage(1, at, 100 * MEBIBYTE + int(at) % 7, files=20) for at in range(60)]

    assert list(Drift([*STEADY, *STEADY], usage).faults()) == []


@pytest.mark.fault("F60")
@pytest.mark.parametrize(("found", "code"), [([], 0), ([Breach("I1", "job", "it is not stored")], 1)])
def test_a_soak_ends_with_an_error_if_anything_was_breached(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], found: list[Breach], code: int
) -> None:
    monkeypatch.setattr(Soak, "run", lambda self: _figures(found))

    assert soak.main(["--seconds", "1", "--rate", "1"]) == code

    assert ("I1 job: it is not stored" in capsys.readouterr().out) == bool(found)


def _figures(found: list[Breach]) -> Figures:
    course = Course("a server", 1, 1.0, 1, 1, {}, {}, 1)
    return Figures(course, 0, 0, 0, {}, 0, 0, 0, Drift([], []), found)
