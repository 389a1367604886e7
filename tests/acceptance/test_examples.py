"""The examples as a reader runs them: real processes, real requests, and the results of the jobs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pymongo
import pytest

from tests.support.ports import free_port
from tests.support.waiting import DEADLINE, eventually

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ROOT = EXAMPLES.parent


@contextmanager
def running(*arguments: str, killed: bool = False, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs this Python in `examples/` while the block lasts, then asks it to end, which it must do in order; or
    has it `killed`.
    """
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, *arguments], cwd=EXAMPLES, env={**os.environ, "PYTHONPATH": path, **environment}
    )
    try:
        yield process
        if not killed:
            process.terminate()
            # uvicorn ends itself by the signal that it was sent once all is shut down; Flask's own server at once.
            assert process.wait(DEADLINE) in (0, -signal.SIGTERM)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def uvicorn(port: str) -> list[str]:
    return ["-m", "uvicorn", "fastapi_app:app", "--port", port, "--log-level", "warning"]


def flask(port: str) -> list[str]:
    return ["-m", "flask", "--app", "flask_app", "run", "--port", port]


@contextmanager
def answering(port: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=DEADLINE) as client:
        eventually(lambda: answers(client))
        yield client


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/jobs").status_code == 200
    except httpx.TransportError:
        return False


def completed(client: httpx.Client) -> list[dict[str, Any]]:
    jobs: list[dict[str, Any]] = client.get("/jobs").json()
    assert [job["state"] for job in jobs] == ["completed"]
    return jobs


def children(parent: int) -> list[int]:
    """Returns the processes that `parent` has started."""
    return [process for process in processes() if parent_of(process) == parent]


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def parent_of(process: int) -> int | None:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


processes_are_listed = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


@pytest.mark.parametrize("serve", [uvicorn, flask])
def test_a_request_leaves_a_job_that_a_worker_run_by_hand_completes(serve: Any, uri: str) -> None:
    port = str(free_port())

    with running(*serve(port), AXEQ_URI=uri), answering(port) as client:
        posted = client.post("/images", json={"name": "a.jpg", "width": 64})
        waiting = client.get("/jobs").json()
        with running("worker.py", AXEQ_URI=uri):
            jobs = eventually(lambda: completed(client))

    assert posted.status_code == 202
    assert [job["state"] for job in waiting] == ["enqueued"]
    assert jobs == [{"image": "a.jpg", "state": "completed", "result": {"path": "64/a.jpg"}}]


@processes_are_listed
@pytest.mark.parametrize("framework", ["fastapi", "flask"])
def test_a_worker_that_the_app_starts_completes_the_job_and_ends_with_the_app(framework: str, uri: str) -> None:
    port = str(free_port())
    command = uvicorn(port) if framework == "fastapi" else ["flask_app.py"]

    with running(*command, AXEQ_URI=uri, WITH_WORKER="1", PORT=port) as app, answering(port) as client:
        posted = client.post("/images", json={"name": "a.jpg"})
        jobs = eventually(lambda: completed(client))
        workers = children(app.pid)

    assert posted.status_code == 202
    assert jobs == [{"image": "a.jpg", "state": "completed", "result": {"path": "320/a.jpg"}}]
    assert workers
    eventually(lambda: not alive(workers))


@processes_are_listed
@pytest.mark.parametrize("framework", ["fastapi", "flask"])
def test_a_worker_ends_although_its_app_was_killed(framework: str, uri: str) -> None:
    port = str(free_port())
    command = uvicorn(port) if framework == "fastapi" else ["flask_app.py"]

    with running(*command, killed=True, AXEQ_URI=uri, WITH_WORKER="1", PORT=port) as app, answering(port) as client:
        client.post("/images", json={"name": "a.jpg"})
        eventually(lambda: completed(client))
        workers = children(app.pid)

    assert workers
    eventually(lambda: not alive(workers))


@pytest.mark.parametrize("serve", [uvicorn, flask])
def test_a_refused_upload_leaves_no_job(serve: Any, uri: str) -> None:
    port = str(free_port())

    with running(*serve(port), AXEQ_URI=uri), answering(port) as client:
        posted = client.post("/images", json={"name": ""} if serve is flask else {})
        jobs = client.get("/jobs").json()

    assert posted.status_code == 422
    assert jobs == []


def test_fastapi_stores_the_image_and_its_job_together(
    uri: str, server: pymongo.MongoClient[dict[str, Any]], database: str
) -> None:
    port = str(free_port())

    with running(*uvicorn(port), AXEQ_URI=uri), answering(port) as client:
        client.post("/images", json={"name": "a.jpg"})
        stored = [server[database][name].count_documents({}) for name in ("images", "jobs")]

    assert stored == [1, 1]


@pytest.mark.parametrize("example", ["quickstart.py", "transactional.py", "encrypted.py"])
def test_an_example_prints_what_its_last_lines_say(example: str, uri: str, tmp_path: Path) -> None:
    promised = [line[2:] for line in (EXAMPLES / example).read_text().splitlines() if line.startswith("# ")]

    printed = run(example, cwd=tmp_path, AXEQ_URI=uri)

    assert promised
    assert printed == promised


def test_the_quickstart_needs_no_server(tmp_path: Path) -> None:
    printed = run("quickstart.py", cwd=tmp_path, AXEQ_URI="")

    assert printed[-1] == "made 320/a.jpg at attempt 2"
    assert (tmp_path / "quickstart-data").is_dir()


def test_every_example_says_in_its_first_lines_what_it_is() -> None:
    modules = sorted(EXAMPLES.glob("*.py"))

    undocumented = [path.name for path in modules if not path.read_text().startswith('"""')]

    assert modules
    assert undocumented == []


def run(example: str, *, cwd: Path, **environment: str) -> list[str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / example)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=3 * DEADLINE,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.splitlines()


def alive(processes: list[int]) -> list[int]:
    """Returns those of `processes` that still run; a zombie does not."""
    found = []
    for process in processes:
        try:
            if Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
        except OSError:
            continue
    return found
