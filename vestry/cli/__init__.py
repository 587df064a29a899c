"""The `vestry` command.

Exit codes of every command: 0 done; 1 a job, a document or a check of `doctor` failed; 2 wrong usage,
or an unknown job, lane, owner or space; 3 the database, the key ring or an installable part is
missing; 4 not finished, or not in time; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from vestry.cli import audit, dead, forget, jobs, keys, lanes, receipts, rerun, search
from vestry.cli.doctor import command as doctor
from vestry.cli.errors import ExitCode, failure_from
from vestry.cli.index import command as index
from vestry.cli.output import Output
from vestry.cli.plugins import add_commands
from vestry.cli.submit import commands as submit

BUILT_IN = frozenset(
    {
        "submit",
        "index",
        "search",
        "status",
        "wait",
        "result",
        "cancel",
        "receipts",
        "dead",
        "rerun",
        "lanes",
        "doctor",
        "keys",
        "forget",
        "audit",
    }
)
"""Commands that run without importing the checkout's commands, which is slow."""


def application(*, checkout: bool = True) -> typer.Typer:
    """The Typer application.

    Args:
        checkout: add the commands of a checkout (`vestry.cli.plugins`).
    """
    app = typer.Typer(
        name="vestry",
        help=(
            "Submit AI jobs, index documents and search them. Private text is processed on your "
            "own machines only.\n\nCommands use the database at VESTRY_DATABASE_URL or, if that is "
            "not set, the embedded stack in VESTRY_HOME, which `vestry up` starts."
        ),
        epilog=(
            "Exit codes: 0 done, 1 a job or document failed, 2 wrong usage, 3 database, key ring or "
            "package missing, 4 not finished in time, 130 interrupted."
        ),
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    submit.register(app)
    index.register(app)
    search.register(app)
    jobs.register(app)
    receipts.register(app)
    dead.register(app)
    rerun.register(app)
    lanes.register(app)
    doctor.register(app)
    keys.register(app)
    forget.register(app)
    audit.register(app)
    if checkout:
        add_commands(app)
    return app


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"vestry {version('vestry')}")
        raise typer.Exit


def _program(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line; by default the process's.

    Returns:
        The exit code.
    """
    args = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A character that the terminal cannot encode becomes a question mark, not an error.
            stream.reconfigure(errors="replace")
    # The pool logs each failed connection; the command prints one error instead.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    options = args[: args.index("--")] if "--" in args else args
    command = next((arg for arg in args if not arg.startswith("-")), None)
    try:
        app = application(checkout=command not in BUILT_IN and options != ["--version"])
        status = typer.main.get_command(app)(
            args=args or ["--help"], prog_name="vestry", standalone_mode=False
        )
        code = status if isinstance(status, int) else ExitCode.OK
        if code != ExitCode.INTERRUPTED:
            return code
        failure = failure_from(KeyboardInterrupt())
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else ExitCode.FAILED
    except BrokenPipeError:
        # The reader closed the pipe; the interpreter's flush at exit must not fail again.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except BaseException as error:
        failure = failure_from(error)
    Output(as_json="--json" in options).fail(failure)
    return failure.exit_code
