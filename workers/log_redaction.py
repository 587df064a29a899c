"""Logging: one line an event, to stderr, never any content."""

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
"""Other people's loggers whose INFO says nothing an operator needs, or repeats what Flower shows."""

CARRIERS: Final = ("celery", "kombu", "amqp", "billiard", "redis", "flower")
"""Loggers of libraries through whose hands messages go: what they log may have come in one."""
CUT: Final = "…"
_HARMLESS: Final = re.compile(
    r"""[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}      # a job
      | [a-z-]{1,40}@[\w.-]{1,80}                      # a worker
      | (application/)?json | utf-?8 | binary
      | rediss?://[\w.@:\[\]*-]{1,100}(/\d*)?/{0,2}      # the broker, its password masked by Celery
    """,
    re.VERBOSE,
)
_WARNING: Final = re.compile(r"(?:.*/)?([\w.<>-]+:\d+: \w+):")
"""How Python tells a warning: file, line, category; then words that may quote a value."""


class ContentRedactor(logging.Filter):
    """Cuts what other libraries might log of a message or a row.

    Celery logs messages that it cannot decode or does not know, their headers, and at DEBUG a task's
    arguments; drivers and SDKs put values into exceptions. Of what a carrier of messages logs, only
    words that cannot be content are kept; of an exception, whoever logs it, its type; of a warning of
    Python's, where it came from.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Strip the record; always lets it pass."""
        if record.name == "celery.app.trace" and isinstance(record.args, Mapping):
            # Celery puts the exception's repr into the message, and that may quote a payload.
            told = f"task {_kept(record.args.get('name'))}[{_kept(record.args.get('id'))}]"
            error = record.exc_info[1] if record.exc_info else None
            if getattr(error, "content_free", False):
                told = f"{told}: {error}"
            record.msg, record.args = f"{told} ended with an exception", ()
        elif record.name.partition(".")[0] in CARRIERS:
            record.msg, record.args = _redacted(record, _kept).split("\n", 1)[0], ()
        elif record.name == "py.warnings":
            match = _WARNING.match(record.getMessage())
            record.msg, record.args = f"a warning: {match[1] if match else CUT}", ()
        elif _holds_exception(record.args):
            record.msg, record.args = _redacted(record, _unless_exception), ()
        if record.exc_info and record.exc_info[0] is not None:
            first = (record.getMessage().splitlines() or [""])[0]
            record.msg = f"{first} [{record.exc_info[0].__name__}]"
            record.args, record.exc_info, record.exc_text = (), None, None
        record.stack_info = None
        return True


def configure(level: str) -> None:
    """Log to stderr at a level. Replaces whatever was configured before."""
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
    """Have what nobody caught, and Python's warnings, logged like everything else.

    By itself Python prints both to stderr whole, with the values in them.
    """
    # What cannot be formatted would be printed with its arguments.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    log = logging.getLogger("workers.uncaught")

    def uncaught(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if issubclass(kind, (KeyboardInterrupt, SystemExit)):
            sys.__excepthook__(kind, error or kind(), trace)
            return
        log.error("%s at %s", kind.__name__, _place(trace))

    sys.excepthook = uncaught
    threading.excepthook = lambda args: uncaught(args.exc_type, args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: uncaught(args.exc_type, args.exc_value, args.exc_traceback)


def _redacted(record: logging.LogRecord, keep: Any) -> str:
    """The record's message with its arguments as `keep` leaves them."""
    arguments: Any = record.args
    if isinstance(arguments, Mapping):
        arguments = {name: keep(value) for name, value in arguments.items()}
    elif arguments:
        arguments = tuple(keep(value) for value in arguments)
    try:
        return str(record.msg) % arguments if arguments else str(record.msg)
    except (TypeError, ValueError, KeyError):
        return str(record.msg)


def _kept(value: Any) -> Any:
    """A value that cannot be content; else three dots."""
    if value is None or isinstance(value, (bool, int, float, UUID)):
        return value
    if isinstance(value, BaseException):
        return _unless_exception(value)
    if isinstance(value, str) and (
        value in LANES or value in KINDS or value == "" or _HARMLESS.fullmatch(value)
    ):
        return _Word(value)
    return _Word(CUT)


def _unless_exception(value: Any) -> Any:
    if not isinstance(value, BaseException):
        return value
    return _Word(str(value) if getattr(value, "content_free", False) else type(value).__name__)


def _holds_exception(arguments: Any) -> bool:
    values = arguments.values() if isinstance(arguments, Mapping) else arguments or ()
    return any(isinstance(value, BaseException) for value in values)


class _Word(str):
    """Looks the same by %s and %r."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _place(trace: TracebackType | None) -> str:
    """File and line of the innermost frame."""
    if trace is None:
        return "an unknown place"
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
