"""`vestry up` with observers let in, which it otherwise has no place for.

A broker user that may do everything, statistics of every statement, and write-ahead log that is not
compressed, in which a token could hide.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from workers.home import CHECKOUT, Home
from workers.stack import commands as up
from workers.stack import postgres, valkey
from workers.stack.background import BackgroundStack, _await_ready
from workers.stack.process import base_environment, open_log

OBSERVER = "observer"


def start_observed(home: Path, settings: Mapping[str, str]) -> BackgroundStack:
    """The whole stack in the background, as `start_detached` has it, with observers."""
    place = Home(home)
    place.create()
    argv = [sys.executable, __file__, "up", "--home", str(home)]
    argv += [part for pair in settings.items() for part in ("--set", "=".join(pair))]
    with open_log(place.logs / "supervisor.log") as log:
        process = subprocess.Popen(
            argv,
            env=base_environment(),
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return BackgroundStack(place.path, _await_ready(process, place), process)
    except BaseException:
        process.terminate()
        process.wait(60)
        raise


def _let_observers_in() -> None:
    valkey.ValkeyServer.extra_users = {OBSERVER: "~* &* +@all"}
    postgres.SETTINGS |= {
        "shared_preload_libraries": "pg_stat_statements",
        "track_activity_query_size": "65536",
        "wal_compression": "off",
        # All of it is read, again and again.
        "min_wal_size": "32MB",
        "max_wal_size": "64MB",
    }


if __name__ == "__main__":
    _let_observers_in()
    raise SystemExit(up.main())
