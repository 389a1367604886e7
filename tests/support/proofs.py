"""A plugin that fails a session in which a test that proves a feature was skipped wherever it was tried."""

from __future__ import annotations

from collections.abc import Collection

import pytest

__all__ = ["Proofs"]


class Proofs:
    """Watches the tests `named`, as `file::name`. Under xdist the controller sees all reports, and judges.

    A session that was asked for some variants of its tests only, by -k, -m or an id in brackets, is not judged.
    """

    def __init__(self, named: Collection[str]) -> None:
        self._named = frozenset(named)
        self._ran: set[str] = set()
        self._skipped: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.partition("[")[0]
        if test in self._named:
            if report.skipped:
                self._skipped.add(test)
            elif report.when == "call" or report.failed:
                self._ran.add(test)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if session.exitstatus == pytest.ExitCode.OK and self._unproved(session.config):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        unproved = self._unproved(terminalreporter.config)
        if unproved:
            terminalreporter.section("features without a proof", red=True)
        for test in unproved:
            terminalreporter.line(f"{test} proves a feature in docs/features.md, and was skipped wherever it was tried")

    def _unproved(self, config: pytest.Config) -> list[str]:
        chosen = config.option.keyword or config.option.markexpr or any("[" in each for each in config.args)
        if chosen or hasattr(config, "workerinput"):
            return []
        return sorted(self._skipped - self._ran)
