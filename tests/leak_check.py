"""What a run of the tests left behind: processes, and servers' data outside its directory.

Everything that the tests start and write lies below one directory, which is TMPDIR to every process.
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
"""For processes that are just ending."""


def processes(root: Path) -> list[psutil.Process]:
    """Every process of the tests that still runs, besides this one."""
    until = time.monotonic() + ENDING_S
    while (running := _processes(root)) and time.monotonic() < until:
        time.sleep(0.05)
    return running


def server_dirs(root: Path) -> list[Path]:
    """Servers' directories outside a home that lies, or lay, below the tests' directory."""
    return [
        directory
        for base in SYSTEM_DIRS
        for directory in base.glob(f"{PREFIX}*")
        # Other accounts cannot read them, and have made none.
        if os.access(directory / OWNER, os.R_OK)
        and Path(read_json(directory / OWNER).get("home", "/")).is_relative_to(root)
    ]


def _processes(root: Path) -> list[psutil.Process]:
    own = psutil.Process()
    processes = {*own.children(recursive=True)}
    directories = [root, *server_dirs(root)]
    for process in psutil.process_iter():
        # A server may have written its title over its environment, but it works in its directory.
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
