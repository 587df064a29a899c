"""`vestry up` with a Postgres that does not wait for the disk, for tests that do not kill it.

`python -m tests.quick_stack up …` in place of `python -m workers.stack.commands up …`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from tests.run_dir import timed_start
from workers.stack import commands, postgres
from workers.stack.dev_stack import DevStack

QUICK = {"fsync": "off", "full_page_writes": "off"}


@contextmanager
def quick_postgres() -> Iterator[None]:
    """Start Postgres servers without fsync in the block, in this process."""
    with patch.dict(postgres.SETTINGS, QUICK):
        yield


@contextmanager
def quick_servers(home: Path) -> Iterator[DevStack]:
    """Run `DevStack`, Postgres and Valkey in a home, without fsync."""
    with timed_start("Postgres and Valkey alone"), quick_postgres():
        running = DevStack(home).start()
    try:
        yield running
    finally:
        running.stop()


if __name__ == "__main__":
    with quick_postgres():
        sys.exit(commands.main())
