"""The guide is true: its pieces run as one program, print what their comments say, and are typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]
PROGRAM = "\n\n".join(
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "guide.md").read_text(encoding="utf-8"), re.DOTALL)
)
SAYS = re.compile(r"(?:^|\s)(?:print\(.*\)|.*\ba?drain\(\))  # (.*)$", re.MULTILINE)


def test_the_guide_runs_from_top_to_bottom_and_prints_what_its_comments_say(tmp_path: Path, uri: str) -> None:
    (tmp_path / "guide.py").write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "AXEQ_URI": uri, "PYTHONPATH": str(ROOT)}

    run = subprocess.run(
        [sys.executable, "guide.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [line for said in SAYS.findall(PROGRAM) for line in said.split(" / ")]


def test_a_type_checker_agrees_with_the_guide(tmp_path: Path) -> None:
    (tmp_path / "guide.py").write_text(PROGRAM, encoding="utf-8")

    found, problems, code = api.run(["--strict", "--cache-dir", str(tmp_path), str(tmp_path / "guide.py")])

    assert code == 0, found + problems
