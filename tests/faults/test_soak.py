"""The soak in small: what it finds it says, in its report and by its exit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.checker import Breach
from tests.faults.scale import size
from tests.faults.seeds import SEED
from tests.faults.soak import Soak
from tests.faults.soak_report import BEGIN, END, render, write

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.mark.fault("F60")
def test_a_short_soak_has_no_breach_and_writes_its_report(tmp_path: Path) -> None:
    report = tmp_path / "reliability.md"
    report.write_text(f"# Ours\n\n{BEGIN}\nold\n{END}\n\nBelow.\n")
    rate = size(100, full=200, slow=15)

    result = Soak(tmp_path, seconds=size(10, full=300), seed=SEED, rate=rate, processes=3).run()
    write(report, render(result))

    assert list(map(str, result.breaches)) == []
    assert result.enqueued > 0
    assert result.completed == result.enqueued
    assert sum(result.faults.values()) > 0
    text = report.read_text()
    assert text.startswith("# Ours\n")
    assert text.endswith("Below.\n")
    assert "old" not in text
    breached = replace(result, breaches=[Breach("I1", "job", "its enqueue returned, and it is not stored")])
    assert "I1 job: its enqueue returned" in render(breached)
