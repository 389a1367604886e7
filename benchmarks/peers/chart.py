"""Draws what `peers.py` measured as bars, one panel with results and one without: `chart.py FILE.png < report.json`."""

import json
import sys
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OWN = "#0b6e4f"
BACKENDS = {"mongodb": "#8fb8a4", "redis": "#d8a48f", "postgres": "#8fa9d8"}
PANELS = [(True, "Results stored"), (False, "No results")]


def main() -> None:
    report = json.load(sys.stdin)
    rows = [[row for row in report["rows"] if row["results"] == results] for results, _ in PANELS]
    heights = [max(len(panel), 1) for panel in rows]
    size = (9, 1.6 + 0.34 * sum(heights))
    figure, axes = plt.subplots(2, 1, figsize=size, sharex=True, height_ratios=heights, layout="constrained")
    for panel, (_, title), axis in zip(rows, PANELS, axes, strict=True):
        draw(axis, title, panel)
    axes[-1].set_xlabel("no-op jobs per second, 10 workers")
    figure.text(0.99, 0.004, report["machine"], ha="right", fontsize=7, color="#777777")
    figure.savefig(sys.argv[1], dpi=150)


def draw(axis: Any, title: str, rows: list[dict[str, Any]]) -> None:
    rows = sorted(rows, key=lambda row: row["process_per_s"])
    labels = [row["peer"] if row["peer"].endswith("mongodb") else f"{row['peer']} ({row['backend']})" for row in rows]
    colours = [OWN if row["peer"] == "axeq" else BACKENDS[row["backend"]] for row in rows]
    bars = axis.barh(labels, [row["process_per_s"] for row in rows], color=colours)
    axis.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
    axis.set_title(title, loc="left", fontsize=10)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.tick_params(labelsize=8, length=0)
    axis.margins(x=0.1)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


if __name__ == "__main__":
    main()
