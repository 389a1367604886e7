"""The command line: `axeq`. An error of axeq becomes one line on standard error and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no connection to a server, or no answer in time.
"""

from __future__ import annotations

import importlib.metadata
import io
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from axeq.edges.keeper import Signals
from axeq.faces.queue import Queue
from axeq.rules import indexes
from axeq.wire.capabilities import ANSWER_DEADLINE, Finding, examine
from axeq.wire.embedded import open_embedded
from axeq.wire.store import Store
from axeq.wire.wire import JOBS, Place
from axeq.words.errors import (
    AccessDenied,
    AxeqError,
    ConfigurationError,
    EmbeddedUnavailable,
    StoreUnavailable,
    redact,
)

try:
    import click
except ImportError:
    sys.stderr.write("the axeq command needs click: pip install 'axeq[cli]'\n")
    sys.exit(2)

__all__ = ["commands", "main", "run"]

FAILED = 1
USAGE = 2
CONNECTION = 4


def main() -> None:
    """Runs the command line of this process, and ends it with the command's exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. An error is one line on standard error."""
    try:
        code = commands.main(list(arguments), prog_name="axeq", standalone_mode=False)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(file=shown)
        click.echo(redact(shown.getvalue()), err=True, nl=False)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return FAILED
    except AxeqError as error:
        click.echo(f"axeq: {' '.join(str(error).split())}", err=True)
        return _exit_code(error)
    return code if isinstance(code, int) else 0


def _exit_code(error: AxeqError) -> int:
    if isinstance(error, StoreUnavailable | AccessDenied | EmbeddedUnavailable):
        return CONNECTION
    return USAGE if isinstance(error, ConfigurationError) else FAILED


def _version() -> str:
    try:
        return importlib.metadata.version("axeq")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(_version(), prog_name="axeq")
def commands() -> None:
    """A typed job queue for Python on MongoDB."""


@commands.command()
@click.argument("path", type=click.Path(file_okay=False, path_type=Path))
def dev(path: Path) -> None:
    """Hold a MongoDB-compatible server of its own at PATH until Ctrl-C, and print its URI."""
    if "://" in str(path) or str(path).startswith("mongodb:"):
        raise click.UsageError("PATH is a directory for the server's data, not a URI")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_embedded(path) as server, Signals() as signals:
            click.echo(server.uri)
            click.echo(f"{server.server} serves {server.path}; Ctrl-C ends it, the data stays", err=True)
            signals.wait()
    except KeyboardInterrupt:
        # Before the server was there: nothing to tell.
        return


@commands.command()
@click.option("--files", "tree", metavar="DIR", type=Path, help="Measure the *.py files of DIR instead.")
@click.option("--workers", metavar="N", type=click.IntRange(1, 64), default=2, show_default=True, help="Jobs at once.")
@click.option("--keep", metavar="PATH", type=Path, help="Keep the jobs in PATH, to look at them afterwards.")
def demo(tree: Path | None, workers: int, keep: Path | None) -> int:
    """Measure the standard library, one job per file, on a server of the demo's own.

    Shows what the queue did and the longest functions found. A file that does not parse is tried twice.
    Needs `axeq[cli,embedded]`, or a server program named by AXEQ_MONGOD.
    """
    try:
        from axeq.edges.demo import run as run_demo
    except ImportError as error:
        raise click.ClickException(f"the demo needs {error.name}: pip install 'axeq[cli,embedded]'") from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run_demo(tree, workers=workers, keep=keep)
    except KeyboardInterrupt:
        click.echo("axeq: interrupted", err=True)
        return FAILED


_target = click.argument("target", metavar="[URI]", required=False)
_database = click.option("--database", help="The database; default the URI's own.")
_queue = click.option("--queue", default="default", show_default=True, help="The queue's name.")


@commands.command()
@_target
@_database
def doctor(target: str | None, database: str | None) -> int:
    """Show what the server of URI (default: AXEQ_URI) can do, and what is missing there.

    Writes to a scratch collection of its own, and drops it. Exits with 1 where something is missing, and with 4 where
    the server was too slow to show that nothing is.
    """
    with Store(target, database=database) as store:
        findings = examine(store.sync_client(), store.place.database, prefix=store.place.collection)
        absent = store.run(indexes.missing())
        version = store.capabilities().version
        click.echo(f"server {store.place.host}, version {version}, database {store.place.database}")
        missing = f"{', '.join(_called(index, store.place) for index in absent)}: run `axeq indexes ensure`"
        findings.append(Finding(f"its {len(indexes.INDEXES)} indexes", not absent, missing))
    _show(findings)
    needed = {finding.holds for finding in findings if finding.needed}
    return FAILED if False in needed else CONNECTION if None in needed else 0


def _called(index: indexes.Index, place: Place) -> str:
    """Returns an index's name, with its collection where that is not the jobs' own."""
    return index.name if index.collection == JOBS else f"{index.name} of {place.name(index.collection)}"


def _show(findings: Sequence[Finding]) -> None:
    widest = max(len(finding.what) for finding in findings)
    for finding in findings:
        click.echo(f"{finding.what:<{widest}}  {_shown(finding)}")


def _shown(finding: Finding) -> str:
    if finding.holds is None:
        return f"?    no answer within {ANSWER_DEADLINE:g} s: try again when the server has less to do"
    return "yes" if finding.holds else ("NO   " if finding.needed else "no   ") + finding.without


@commands.group("indexes")
def indexes_group() -> None:
    """Create or render the indexes of axeq's collections."""


@indexes_group.command()
@_target
@_database
def ensure(target: str | None, database: str | None) -> None:
    """Create the indexes that are missing at URI (default: AXEQ_URI)."""
    with Store(target, database=database) as store:
        for name in store.run(indexes.ensure()):
            click.echo(name)


@indexes_group.command()
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
def render(directory: Path) -> None:
    """Write the indexes into DIRECTORY: JSON, a mongosh script, and a page that says what needs which."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in indexes.render().items():
        (directory / name).write_text(text)
        click.echo(directory / name)


@commands.command()
@_target
@_database
@_queue
def stats(target: str | None, database: str | None, queue: str) -> None:
    """Count the jobs of a queue by state at URI (default: AXEQ_URI), no further than 10,000 each."""
    with Store(target, database=database) as store:
        for state, count in Queue(store, queue).stats().items():
            click.echo(f"{state.value:<10} {count}")


if __name__ == "__main__":
    main()
