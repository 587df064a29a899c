"""What a run of the tests has left behind: processes, and servers' data outside its directory.

Whatever the tests start and write lies below one directory, which is TMPDIR to every process.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from workers.home import read_json
from workers.stack.server_dir import OWNER, PREFIX, SYSTEM_DIRS

PATIENCE_S = 20.0
"""For what has been told to end already."""


def processes(root: Path) -> list[psutil.Process]:
    """Every process of the tests that still runs, this one left out."""
    until = time.monotonic() + PATIENCE_S
    while (found := _processes(root)) and time.monotonic() < until:
        time.sleep(0.05)
    return found


def places(root: Path) -> list[Path]:
    """Directories of servers whose home lies, or lay, below the tests' own directory."""
    return [
        place
        for base in SYSTEM_DIRS
        for place in base.glob(f"{PREFIX}*")
        # As anybody else they could not be read, and there are none of ours.
        if os.access(place / OWNER, os.R_OK)
        and Path(read_json(place / OWNER).get("home", "/")).is_relative_to(root)
    ]


def _processes(root: Path) -> list[psutil.Process]:
    own = psutil.Process()
    theirs = {*own.children(recursive=True)}
    elsewhere = [root, *places(root)]
    for process in psutil.process_iter():
        # A server may have written its title over its environment, but it works in its directory.
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.environ().get("TMPDIR", "/")).is_relative_to(root):
                theirs.add(process)
        with contextlib.suppress(psutil.Error, OSError):
            if any(Path(process.cwd()).is_relative_to(place) for place in elsewhere):
                theirs.add(process)
    return [p for p in theirs if p.pid != own.pid and _runs(p)]


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
