"""The command line: `axeq`. An error of axeq becomes one line on standard error and an exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 4 no connection to a server.
"""

from __future__ import annotations

import importlib.metadata
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from axeq.embedded import open_embedded
from axeq.errors import (
    AccessDenied,
    AxeqError,
    ConfigurationError,
    EmbeddedUnavailable,
    StoreUnavailable,
)
from axeq.keeper import Signals

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
        error.show()
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with open_embedded(path) as server, Signals() as signals:
            click.echo(server.uri)
            click.echo(f"{server.server} serves {server.path}; Ctrl-C ends it, the data stays", err=True)
            signals.wait()
    except KeyboardInterrupt:
        # Before the server was there: nothing to tell.
        return


if __name__ == "__main__":
    main()
