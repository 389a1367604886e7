"""Measures axeq beside the raw driver doing the same work by hand, both in one run, and prints what was reached.

On the server that AXEQ_URI names, or on one that axeq runs itself. See README.md beside it.
"""

from __future__ import annotations

import argparse
import json
import operator
import os
import platform
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mongodb import mongodb
from rows import FULL, QUICK, ROWS, Bench


@dataclass(frozen=True)
class Goal:
    """A number to reach: `key` in the measurements, `reached` compares it with `limit`."""

    key: str
    what: str
    reached: Callable[..., bool]
    limit: float


GOALS = [
    Goal("enqueue_one_ratio", "enqueue, of insert_one", operator.ge, 0.85),
    Goal("enqueue_many_ratio", "enqueue_many of 1,000, of insert_many", operator.ge, 0.85),
    Goal("process_ratio", "no-op jobs, of the batch loop by hand", operator.ge, 0.85),
    Goal("process_result_ratio", "the same with results", operator.ge, 0.85),
    Goal("latency_p50_ratio", "enqueue to start, p50, times by hand", operator.le, 1.5),
    Goal("latency_p95_ratio", "enqueue to start, p95, times by hand", operator.le, 3.0),
    Goal("backlog_ratio", "large backlog, of the small one's rate", operator.ge, 0.8),
    Goal("rss_growth_mb", "the pool's memory grows by, MB", operator.lt, 20.0),
    Goal("pools4_ratio", "4 pools on one queue, of one pool's rate", operator.ge, 0.9),
    Goal("lost_claim_share", "of their claims lost a race", operator.le, 0.02),
    Goal("herd_claims_per_job", "claims for one job, 8 idle pools", operator.le, 1.2),
    Goal("idle_commands_per_s", "idle pool of 50 tasks, commands/s", operator.le, 1.0),
    Goal("idle_core_share", "the same, of a core", operator.lt, 0.01),
    Goal("import_ratio", "import axeq, times pymongo and pydantic", operator.le, 1.3),
]

SIGNS: dict[Callable[..., bool], str] = {operator.ge: ">=", operator.le: "<=", operator.lt: "<"}
PLAIN = {
    "process_per_s": "axeq, jobs/s",
    "floor_per_s": "by hand, jobs/s",
    "process_result_per_s": "axeq with results, jobs/s",
    "floor_result_per_s": "by hand with results, jobs/s",
    "latency_p50_ms": "axeq, enqueue to start, p50, ms",
}


def main() -> None:
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    _say(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, "
        f"load average {os.getloadavg()[0]:.2f}"
    )
    with mongodb() as (uri, name):
        _say(name)
        found, failed = _measured(Bench(uri, QUICK if given.quick else FULL, _say), given.only or list(ROWS))
    _print_table(found, to_stderr=given.json)
    scale = " (quick: fewer jobs, and pools hear of each other each second instead of each five)" if given.quick else ""
    _say(f"{time.monotonic() - began:.0f} s{scale}")
    if given.json:
        print(json.dumps({key: round(value, 4) for key, value in found.items()}))
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="within a minute, with fewer jobs")
    parser.add_argument("--json", action="store_true", help="the numbers as one JSON object on standard output")
    parser.add_argument("--only", metavar="ROW,..", type=_rows, help=", ".join(ROWS))
    return parser.parse_args()


def _rows(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(ROWS):
        raise argparse.ArgumentTypeError(f"no row is named {', '.join(sorted(unknown))}")
    return names


def _measured(bench: Bench, names: list[str]) -> tuple[dict[str, float], list[str]]:
    """Returns the numbers, and the rows that could not be measured."""
    found: dict[str, float] = {}
    failed: list[str] = []
    try:
        for name in names:
            began = time.monotonic()
            try:
                measured = ROWS[name](bench)
            except Exception as error:  # noqa: BLE001 - the other rows are worth having
                _say(f"{name}: failed, {error!r}")
                failed.append(name)
                continue
            numbers = ", ".join(f"{key} {value:,.3g}" for key, value in measured.items())
            _say(f"{name}: {numbers} [{time.monotonic() - began:.1f} s]")
            found |= measured
    finally:
        bench.close()
    return found, failed


def _print_table(found: Mapping[str, float], *, to_stderr: bool) -> None:
    lines = [f"{'':42} {'goal':>10} {'measured':>10}"]
    for goal in GOALS:
        if goal.key in found:
            value = found[goal.key]
            reached = "reached" if goal.reached(value, goal.limit) else "not reached"
            lines.append(
                f"{goal.what:42} {f'{SIGNS[goal.reached]} {goal.limit:g}':>10} {_number(value):>10}  {reached}"
            )
    lines += [f"{what:42} {'':>10} {_number(found[key]):>10}" for key, what in PLAIN.items() if key in found]
    print("\n".join(lines), file=sys.stderr if to_stderr else sys.stdout, flush=True)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
