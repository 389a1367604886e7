"""A Markdown page of which parts, each between two markers, are written by programs."""

from __future__ import annotations

from pathlib import Path

__all__ = ["begin", "end", "part", "put"]

_HEADING = "# Reliability\n"


def begin(name: str) -> str:
    """Returns the marker before the part of that name."""
    return f"<!-- {name}: begin -->"


def end(name: str) -> str:
    """Returns the marker after it."""
    return f"<!-- {name}: end -->"


def put(path: Path, name: str, text: str) -> None:
    """Puts `text` in the place of the part; makes the page, and the part, where there is none."""
    page = path.read_text() if path.exists() else _HEADING
    if begin(name) not in page:
        page = f"{page.rstrip()}\n\n{begin(name)}\n{end(name)}\n"
    head, _, rest = page.partition(begin(name))
    path.write_text(f"{head}{begin(name)}\n{text}\n{end(name)}{rest.partition(end(name))[2]}")


def part(path: Path, name: str) -> str:
    """Returns what stands between the markers."""
    return path.read_text().partition(f"{begin(name)}\n")[2].partition(f"\n{end(name)}")[0]
