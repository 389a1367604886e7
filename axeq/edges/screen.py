"""What `axeq demo` shows: one live bar on a terminal, plain lines elsewhere, and tables of the jobs read back."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from heapq import nlargest
from typing import TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from axeq.documents.record import Record
from axeq.edges.measure import KEPT, Function, Measured
from axeq.words.states import State

__all__ = ["Screen", "Shown", "count"]

_LINE_EVERY = 5.0
_LINE_WIDTH = 120
_MOST_UNMEASURED = 10
_NUMBERS = 24
"""How many characters of a line the columns of numbers and the gaps take at most."""


class Screen:
    """A terminal, or a file that gets plain text without control codes."""

    def __init__(self, file: TextIO) -> None:
        # Without a terminal, what the environment says of colours (FORCE_COLOR) does not count.
        plain = {} if file.isatty() else {"force_terminal": False, "color_system": None, "width": _LINE_WIDTH}
        self._console = Console(file=file, highlight=False, markup=False, emoji=False, **plain)  # type: ignore[arg-type]
        self._live = self._console.is_terminal and not self._console.is_dumb_terminal

    def say(self, line: str) -> None:
        """Prints a line."""
        self._console.print(_clean(line), soft_wrap=True)

    @contextmanager
    def progress(self, total: int) -> Iterator[Shown]:
        """Shows the progress of `total` jobs while it is entered."""
        if not self._live:
            yield _Lines(total, self)
            return
        text = TextColumn("{task.description}", markup=False)
        with Progress(BarColumn(bar_width=None), text, TimeElapsedColumn(), console=self._console, expand=True) as bar:
            yield _Bar(total, bar)

    def tables(self, jobs: Sequence[Record]) -> None:
        """Shows what the documents of ended jobs tell."""
        self._print(_states(jobs))
        self._print(_times(jobs))
        unmeasured = [job for job in jobs if job.state is not State.COMPLETED]
        if unmeasured:
            self._print(_unmeasured(unmeasured, self._console.width))
        self._print(_longest(jobs, self._console.width))
        if not self._live:
            self._console.print()

    def _print(self, table: Table) -> None:
        table.box = SIMPLE_HEAD if self._live else None
        table.header_style = "bold cyan"
        table.pad_edge = False
        if not self._live:
            self._console.print()
        self._console.print(table)


class Shown:
    """The progress of `total` jobs on a screen."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._began = time.monotonic()

    def update(self, counts: Mapping[str, int]) -> int:
        """Shows a pool's counts, and returns how many jobs have ended."""
        ended = counts["complete"] + counts["cancel"]
        rate = ended / max(time.monotonic() - self._began, 0.001)
        retried = count(counts["fail"], "retry", "retries")
        self._show(ended, f"{ended:,} of {self._total:,}, {retried}, {rate:,.0f} jobs/s")
        return ended

    def _show(self, ended: int, text: str) -> None:
        raise NotImplementedError


class _Bar(Shown):
    def __init__(self, total: int, bar: Progress) -> None:
        super().__init__(total)
        self._bar = bar
        self._task = bar.add_task("", total=total)

    def _show(self, ended: int, text: str) -> None:
        self._bar.update(self._task, completed=ended, description=text)


class _Lines(Shown):
    def __init__(self, total: int, screen: Screen) -> None:
        super().__init__(total)
        self._screen = screen
        self._next = self._began + _LINE_EVERY

    def _show(self, ended: int, text: str) -> None:
        if time.monotonic() >= self._next or ended == self._total:
            self._next = time.monotonic() + _LINE_EVERY
            self._screen.say(f"measured {text}")


def count(number: int, noun: str, nouns: str | None = None) -> str:
    """Returns a number with its noun, as in "1 file" and "1,790 files"."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"


def _states(jobs: Sequence[Record]) -> Table:
    table = _table("jobs", right=["number"])
    for (state, cause), number in Counter((job.state, job.cause) for job in jobs).most_common():
        table.add_row(f"{state} ({cause})" if cause else str(state), f"{number:,}")
    table.add_row("retries", f"{sum(max(0, job.attempts - 1) for job in jobs):,}")
    table.add_row("jobs per second", f"{_rate(jobs):,.1f}")
    return table


def _rate(jobs: Sequence[Record]) -> float:
    """Returns the jobs ended per second, from the first enqueue to the last end."""
    ends = [job.finished_at for job in jobs if job.finished_at is not None]
    took = (max(ends) - min(job.created_at for job in jobs)).total_seconds() if ends else 0.0
    return len(ends) / took if took else 0.0


def _times(jobs: Sequence[Record]) -> Table:
    # A document keeps the start of its last attempt only: the first one's wait is known where there was no other.
    waits = [_seconds(job.created_at, job.started_at) for job in jobs if job.started_at and job.attempts == 1]
    runs = [_seconds(job.started_at, job.ended_at) for job in jobs if job.started_at and job.ended_at]
    table = _table("time", right=["p50", "p95"])
    table.add_row("enqueue to start", *_percentiles(waits))
    table.add_row("run", *_percentiles(runs))
    return table


def _seconds(start: datetime, end: datetime) -> float:
    return (end - start).total_seconds()


def _percentiles(values: Sequence[float]) -> tuple[str, str]:
    if len(values) < 2:
        only = _duration(values[0]) if values else "-"
        return only, only
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return _duration(cuts[9]), _duration(cuts[18])


def _duration(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _unmeasured(jobs: Sequence[Record], width: int) -> Table:
    table = _table("not measured", right=["attempts"], width=width)
    table.add_column("error", no_wrap=True, overflow="ellipsis", max_width=width // 2 - 4)
    for job in sorted(jobs, key=_file)[:_MOST_UNMEASURED]:
        error = job.error or {}
        told = f"{error.get('type', '')}: {error.get('message', '')}" if error else ""
        table.add_row(_ending(_file(job), width), str(job.attempts), _clean(told))
    if len(jobs) > _MOST_UNMEASURED:
        table.add_row(f"and {len(jobs) - _MOST_UNMEASURED:,} more")
    return table


def _longest(jobs: Sequence[Record], width: int) -> Table:
    found: list[tuple[str, Function]] = []
    for job in jobs:
        if job.state is State.COMPLETED:
            found += [(_file(job), function) for function in Measured.model_validate(job.result).longest]
    table = _table("longest functions", "function", right=["lines", "complexity"], width=width)
    for file, function in nlargest(KEPT, found, key=lambda entry: entry[1].lines):
        table.add_row(_ending(file, width), _clean(function.name), f"{function.lines:,}", f"{function.complexity:,}")
    return table


def _file(job: Record) -> str:
    return str(job.data["file"])


def _ending(path: str, width: int) -> Text:
    """Returns a path cut to its column from the left: its end tells most."""
    room = (width - _NUMBERS) // 2
    return _clean(path if len(path) <= room else "..." + path[3 - room :])


def _table(*left: str, right: Sequence[str], width: int = _LINE_WIDTH) -> Table:
    """Returns a table of one or two columns of text, which are cut to leave room for the numbers, and numbers."""
    table = Table()
    for header in left:
        table.add_column(header, no_wrap=True, overflow="ellipsis", max_width=(width - _NUMBERS) // 2)
    for header in right:
        table.add_column(header, justify="right", no_wrap=True)
    return table


def _clean(text: str) -> Text:
    """Returns text of files and errors without what would steer a terminal."""
    return Text("".join(character if character.isprintable() else " " for character in text))
