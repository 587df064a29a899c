"""What a command line ends with: exit codes, and how an exception becomes one error.

`{"error": {"code", "message"}}` on stdout with `--json`, one line on stderr without. Nobody ever
sees a traceback: it could quote a text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import psycopg
import typer

from vestry.errors import (
    DatabaseError,
    IdempotencyConflict,
    InvalidInput,
    JobFailed,
    KeyRingError,
    NotFinished,
    OwnerForgotten,
    PayloadGone,
    ResultGone,
    SettingsError,
    Unavailable,
    UnknownJob,
    UnknownLane,
    UnknownOwner,
    UnknownSpace,
    VestryError,
    WaitTimeout,
)

# Its base class has no public name in every supported version of Typer; BadParameter's second
# ancestor is it in all of them.
PARSING: type[Exception] = typer.BadParameter.__mro__[2]
"""Typer's exception for a command line that cannot be parsed."""


class ExitCode(IntEnum):
    """What the exit status means, for every command."""

    OK = 0
    FAILED = 1
    """A job failed, a document could not be indexed, or `doctor` is not content."""
    USAGE = 2
    """The command line or what it names cannot be used."""
    UNAVAILABLE = 3
    """The database, the key ring or something installable is not there."""
    TIMEOUT = 4
    """Not finished yet, or not in the time given; the job goes on."""
    INTERRUPTED = 130
    """Ctrl-C."""


_EXITS: tuple[tuple[type[VestryError], ExitCode], ...] = (
    (InvalidInput, ExitCode.USAGE),
    (IdempotencyConflict, ExitCode.USAGE),
    (UnknownJob, ExitCode.USAGE),
    (UnknownLane, ExitCode.USAGE),
    (UnknownOwner, ExitCode.USAGE),
    (UnknownSpace, ExitCode.USAGE),
    (WaitTimeout, ExitCode.TIMEOUT),
    (NotFinished, ExitCode.TIMEOUT),
    (Unavailable, ExitCode.UNAVAILABLE),
    (DatabaseError, ExitCode.UNAVAILABLE),
    (SettingsError, ExitCode.UNAVAILABLE),
    (KeyRingError, ExitCode.UNAVAILABLE),
    (OwnerForgotten, ExitCode.FAILED),
    (ResultGone, ExitCode.FAILED),
    (PayloadGone, ExitCode.FAILED),
    (JobFailed, ExitCode.FAILED),
)


class CommandError(Exception):
    """A command cannot go on; its message is for the person who typed it."""

    def __init__(
        self, code: str, message: str, exit_code: ExitCode = ExitCode.USAGE, **more: Any
    ) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code
        self.more = more


@dataclass(frozen=True, slots=True)
class Failure:
    """One error as it is shown; `more` are further fields of the JSON document."""

    code: str
    message: str
    exit_code: ExitCode
    more: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {"error": {"code": self.code, "message": self.message}, **self.more}


def explain(error: BaseException) -> Failure:  # noqa: PLR0911 - one return a family
    """The one error that is shown for an exception."""
    if isinstance(error, CommandError):
        return Failure(error.code, str(error), error.exit_code, error.more)
    if isinstance(error, JobFailed):
        return Failure(error.code, error.message, ExitCode.FAILED, {})
    if isinstance(error, InvalidInput):
        return Failure("invalid_input", str(error), ExitCode.USAGE, {})
    if isinstance(error, VestryError):
        code = next((e for kind, e in _EXITS if isinstance(error, kind)), ExitCode.FAILED)
        return Failure(snake_case(type(error).__name__), str(error), code, {})
    if isinstance(error, PARSING):
        return Failure("usage", _usage(error), ExitCode.USAGE, {})
    if isinstance(error, psycopg.OperationalError):
        return Failure("unavailable", "The database cannot be reached.", ExitCode.UNAVAILABLE, {})
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Failure("interrupted", "Interrupted.", ExitCode.INTERRUPTED, {})
    # Only the class is shown: the message might quote a text.
    message = f"Something unforeseen went wrong ({type(error).__name__})."
    return Failure("internal", message, ExitCode.FAILED, {})


def snake_case(name: str) -> str:
    """`WaitTimeout` to `wait_timeout`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("Error")).lower()


def _usage(error: Any) -> str:
    message = " ".join(str(error.format_message()).split())
    missing = getattr(getattr(error, "param", None), "name", None)
    if missing == "privacy" and message.startswith("Missing"):
        return (
            "Missing option '--privacy': say 'private' (own machines only) or 'shareable' "
            "(a cloud model may see it). There is no default."
        )
    message = message.replace("Value error, ", "")
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    if not message.endswith((".", "!", "?")):
        message += "."
    return f"{message} See `{path} --help`." if path else message
