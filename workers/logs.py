"""Logging: one line an event, to stderr, never any content."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import Final

QUIET: Final = ("amqp", "httpx", "httpx2", "urllib3", "filelock", "asyncio", "celery.app.trace")
"""Other people's loggers whose INFO says nothing an operator needs, or repeats what Flower shows."""


class ContentFree(logging.Filter):
    """Cuts what other libraries might log of a message or a row.

    Celery logs up to 1,024 characters of a message that it cannot decode; psycopg and SQLAlchemy put
    parameters into exceptions. Records of those loggers keep their first line, without arguments that
    hold bodies, and exceptions only their type.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Strip the record; always lets it pass."""
        if record.name.startswith(("celery.worker.consumer", "kombu")) and record.levelno >= (
            logging.WARNING
        ):
            record.msg, record.args = record.getMessage().split("\n", 1)[0][:120], ()
        if record.name == "celery.app.trace" and isinstance(record.args, Mapping):
            # Celery puts the exception's repr into the message, and that may quote a payload.
            told = f"task {record.args.get('name')}[{record.args.get('id')}]"
            error = record.exc_info[1] if record.exc_info else None
            if getattr(error, "content_free", False):
                told = f"{told}: {error}"
            record.msg, record.args = f"{told} ended with an exception".replace("%", "%%"), ()
        if record.exc_info and record.exc_info[0] is not None:
            record.msg = f"{record.getMessage().splitlines()[0]} [{record.exc_info[0].__name__}]"
            record.args, record.exc_info, record.exc_text = (), None, None
        return True


def configure(level: str) -> None:
    """Log to stderr at a level. Replaces whatever was configured before."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    handler.addFilter(ContentFree())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level.upper() != "DEBUG":
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.WARNING)
