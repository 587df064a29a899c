"""`vestry up` with observers: a broker user with all permissions and statistics of every statement.

The write-ahead log is not compressed, since a search does not find tokens in compressed pages.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from tests.run_dir import timed_start
from workers.stack import commands, postgres, valkey
from workers.stack.background import BackgroundStack, start_background

OBSERVER = "observer"


def start_observed(home: Path, settings: Mapping[str, str]) -> BackgroundStack:
    """Start the whole stack in the background, with observers."""
    with timed_start("`vestry up` with observers"):
        return start_background(home, settings, module="tests.privacy.observed_up")


def _add_observers() -> None:
    valkey.ValkeyServer.extra_users = {OBSERVER: "~* &* +@all"}
    postgres.SETTINGS |= {
        "shared_preload_libraries": "pg_stat_statements",
        "track_activity_query_size": "65536",
        "wal_compression": "off",
        "fsync": "off",
        # Small: the whole log is read several times.
        "min_wal_size": "32MB",
        "max_wal_size": "64MB",
    }


if __name__ == "__main__":
    _add_observers()
    sys.exit(commands.main())
