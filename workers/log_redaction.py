"""Logging of worker processes: one line per event, to stderr, with content of jobs redacted."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final
from uuid import UUID

from vestry.lanes import KINDS, LANES

QUIET: Final = ("amqp", "httpx", "httpx2", "urllib3", "filelock", "asyncio", "celery.app.trace")
"""Loggers of libraries whose INFO lines are of no use to an operator, or repeat Flower."""

CARRIERS: Final = ("celery", "kombu", "amqp", "billiard", "redis", "flower")
"""Loggers of libraries that handle messages: their lines may quote one."""
REDACTED: Final = "…"
_HARMLESS: Final = re.compile(
    r"""[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}      # a job
      | [a-z-]{1,40}@[\w.-]{1,80}                      # a worker
      | (application/)?json | utf-?8 | binary
      | rediss?://[\w.@:\[\]*-]{1,100}(/\d*)?/{0,2}      # the broker, its password masked by Celery
    """,
    re.VERBOSE,
)
_WARNING: Final = re.compile(r"(?:.*/)?([\w.<>-]+:\d+: \w+):")
"""Start of a Python warning: file, line, category. The text after it may quote a value."""


def configure(level: str) -> None:
    """Log to stderr at a level, with redaction. Replaces any earlier configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    handler.addFilter(ContentRedactor())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level.upper() != "DEBUG":
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)


def own_process() -> None:
    """Log uncaught exceptions and Python warnings with redaction, too.

    Python by itself prints both to stderr with the values they quote.
    """
    # Python would print a record that cannot be formatted with its arguments.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    log = logging.getLogger("workers.uncaught")

    def uncaught(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, (KeyboardInterrupt, SystemExit)):
            sys.__excepthook__(kind, error or kind(), trace)
            return
        log.error("uncaught %s at %s", kind.__name__, _innermost_line(trace))

    sys.excepthook = uncaught
    threading.excepthook = lambda args: uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class ContentRedactor(logging.Filter):
    """Redacts the content of messages and rows from the lines of other libraries.

    Celery logs messages that it cannot decode or does not know, their headers, and at DEBUG a task's
    arguments; drivers and SDKs put values into exceptions. A line of a CARRIERS logger keeps only words
    that cannot be content; an exception keeps its type, in any line; a Python warning its origin.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record; always returns True."""
        if record.name == "celery.app.trace" and isinstance(record.args, Mapping):
            # Celery's message has the exception's repr, which may quote a payload.
            name, task_id = (_harmless(record.args.get(key)) for key in ("name", "id"))
            error = record.exc_info[1] if record.exc_info else None
            reason = f" ({error})" if getattr(error, "content_free", False) else ""
            if "return_value" in record.args:
                outcome = "succeeded"
            elif record.args.get("description") == "ignored":
                outcome = "was ignored"  # its job was fetched without this hint, or stopped
            else:
                outcome = f"ended with an exception{reason}"
            record.msg, record.args = f"task {name}[{task_id}] {outcome}", ()
        elif record.name.partition(".")[0] in CARRIERS:
            record.msg, record.args = _formatted(record, _harmless).split("\n", 1)[0], ()
        elif record.name == "py.warnings":
            match = _WARNING.match(record.getMessage())
            record.msg, record.args = f"Python warning: {match[1] if match else REDACTED}", ()
        elif _has_exception(record.args):
            record.msg, record.args = _formatted(record, _without_message), ()
        if record.exc_info and record.exc_info[0] is not None:
            first = (record.getMessage().splitlines() or [""])[0]
            record.msg = f"{first} [{record.exc_info[0].__name__}]"
            record.args, record.exc_info, record.exc_text = (), None, None
        record.stack_info = None
        return True


def _formatted(record: logging.LogRecord, redact: Any) -> str:
    """The record's message, with `redact` applied to each argument."""
    arguments: Any = record.args
    if isinstance(arguments, Mapping):
        arguments = {name: redact(value) for name, value in arguments.items()}
    elif arguments:
        arguments = tuple(redact(value) for value in arguments)
    try:
        return str(record.msg) % arguments if arguments else str(record.msg)
    except (TypeError, ValueError, KeyError):
        return str(record.msg)


def _harmless(value: Any) -> Any:
    """The value if it cannot be content, else REDACTED."""
    if value is None or isinstance(value, (bool, int, float, UUID)):
        return value
    if isinstance(value, BaseException):
        return _without_message(value)
    if isinstance(value, str) and (
        value in LANES or value in KINDS or value == "" or _HARMLESS.fullmatch(value)
    ):
        return _Word(value)
    return _Word(REDACTED)


def _without_message(value: Any) -> Any:
    """An exception's type, or its message if that is content-free; any other value unchanged."""
    if not isinstance(value, BaseException):
        return value
    return _Word(str(value) if getattr(value, "content_free", False) else type(value).__name__)


def _has_exception(arguments: Any) -> bool:
    values = arguments.values() if isinstance(arguments, Mapping) else arguments or ()
    return any(isinstance(value, BaseException) for value in values)


class _Word(str):
    """A string without quotes in %r."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _innermost_line(trace: TracebackType | None) -> str:
    """File and line of the innermost frame."""
    if trace is None:
        return "an unknown line"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
