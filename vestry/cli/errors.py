"""Exit codes, and the conversion of an exception into the one error that a command prints.

With `--json` the error is `{"error": {"code", "message"}}` on stdout, otherwise one line on stderr.
A traceback is never printed: it could quote a text.
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

# The class has a public name in only some of the supported versions of Typer; in all of them it is
# BadParameter's second ancestor.
USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[2]
"""Typer's exception for a command line that cannot be parsed."""


class ExitCode(IntEnum):
    """Exit status of every command."""

    OK = 0
    FAILED = 1
    """A job failed, a document could not be indexed, or a check of `doctor` failed."""
    USAGE = 2
    """Wrong usage, or an unknown job, lane, owner or space."""
    UNAVAILABLE = 3
    """The database, the key ring or an installable part is missing."""
    TIMEOUT = 4
    """Not finished, or not within the timeout; the job continues."""
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
    """A command cannot continue; the message is for its user.

    `fields` are further fields of the JSON document.
    """

    def __init__(
        self, code: str, message: str, exit_code: ExitCode = ExitCode.USAGE, **fields: Any
    ) -> None:
        super().__init__(message)
        self.code = code
        self.exit_code = exit_code
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Failure:
    """One error as it is printed; `fields` are further fields of the JSON document."""

    code: str
    message: str
    exit_code: ExitCode
    fields: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The JSON document."""
        return {"error": {"code": self.code, "message": self.message}, **self.fields}


def failure_from(error: BaseException) -> Failure:  # noqa: PLR0911 - one return per family
    """The error to print for an exception."""
    if isinstance(error, CommandError):
        return Failure(error.code, str(error), error.exit_code, error.fields)
    if isinstance(error, JobFailed):
        return Failure(error.code, error.message, ExitCode.FAILED, {})
    if isinstance(error, InvalidInput):
        return Failure("invalid_input", str(error), ExitCode.USAGE, {})
    if isinstance(error, VestryError):
        code = next((e for kind, e in _EXITS if isinstance(error, kind)), ExitCode.FAILED)
        return Failure(snake_case(type(error).__name__), str(error), code, {})
    if isinstance(error, USAGE_ERROR):
        return Failure("usage", _usage_message(error), ExitCode.USAGE, {})
    if isinstance(error, psycopg.OperationalError):
        message = "The database cannot be reached; `vestry doctor` shows the reason."
        return Failure("unavailable", message, ExitCode.UNAVAILABLE, {})
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Failure("interrupted", "Interrupted.", ExitCode.INTERRUPTED, {})
    # Only the class: the exception's message might quote a text.
    message = f"Internal error ({type(error).__name__}). Please report the command that caused it."
    return Failure("internal", message, ExitCode.FAILED, {})


def snake_case(name: str) -> str:
    """`WaitTimeout` to `wait_timeout`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.removesuffix("Error")).lower()


def _usage_message(error: Any) -> str:
    """Typer's message as sentences, with the command whose help explains the usage."""
    message = " ".join(str(error.format_message()).split())
    missing = getattr(getattr(error, "param", None), "name", None)
    if missing == "privacy" and message.startswith("Missing"):
        return (
            "Missing option '--privacy': give 'private' (processed on your own machines only) or "
            "'shareable' (a cloud model may process it). There is no default."
        )
    message = message.replace("Value error, ", "")
    path = getattr(getattr(error, "ctx", None), "command_path", None)
    if not message.endswith((".", "!", "?")):
        message += "."
    return f"{message} See `{path} --help`." if path else message
