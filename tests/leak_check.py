"""Leaks of a test run: processes, and servers' data outside the run directory.

All data of the tests is below one directory, which is TMPDIR for every process.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from workers.home import read_json
from workers.stack.server_dir import OWNER, PREFIX, SYSTEM_DIRS

ENDING_S = 20.0
"""Timeout for processes that are ending."""


def processes(root: Path) -> list[psutil.Process]:
    """Every process of the tests that still runs, besides this one."""
    deadline = time.monotonic() + ENDING_S
    while (running := _processes(root)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return running


def server_dirs(root: Path) -> list[Path]:
    """Servers' directories outside their home, if that home is or was below `root`."""
    return [
        directory
        for base in SYSTEM_DIRS
        for directory in base.glob(f"{PREFIX}*")
        # One that is unreadable belongs to another account, and not to this run.
        if os.access(directory / OWNER, os.R_OK)
        and Path(read_json(directory / OWNER).get("home", "/")).is_relative_to(root)
    ]


def _processes(root: Path) -> list[psutil.Process]:
    own = psutil.Process()
    processes = {*own.children(recursive=True)}
    directories = [root, *server_dirs(root)]
    for process in psutil.process_iter():
        # A server's title may overwrite its environment; its working directory still identifies it.
        with contextlib.suppress(psutil.Error, OSError):
            if Path(process.environ().get("TMPDIR", "/")).is_relative_to(root):
                processes.add(process)
        with contextlib.suppress(psutil.Error, OSError):
            if any(Path(process.cwd()).is_relative_to(directory) for directory in directories):
                processes.add(process)
    return [process for process in processes if process.pid != own.pid and _runs(process)]


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False
