"""The catalogue as a table for readers; `python -m tests.faults.catalogue_table` puts it into `docs/reliability.md`."""

from __future__ import annotations

from pathlib import Path

from tests.faults import page
from tests.faults.catalogue import CATALOGUE, Entry

__all__ = ["PART", "REPORT", "render"]

PART = "catalogue"
REPORT = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def render() -> str:
    """Returns the catalogue as Markdown: of each test its claim, which is its name."""
    rows = [f"| {number} | {entry.what} | {_shown(entry)} |" for number, entry in CATALOGUE.items()]
    return "\n".join(["| # | fault | what is shown |", "| --- | --- | --- |", *rows])


def _shown(entry: Entry) -> str:
    claims = [_claim(test) for test in entry.tests]
    return "<br>".join([*claims, *([f"*Not here: {entry.missing}.*"] if entry.missing else [])])


def _claim(test: str) -> str:
    return test.partition("::test_")[2].replace("_", " ")


if __name__ == "__main__":
    page.put(REPORT, PART, render())
