"""`ocr.worker_main` with an optional fault on the second page.

The fault occurs where the decoder of a hostile page would fail. The job's `dpi` selects it: a page with
a text layer does not use its `dpi`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from inference.ocr import worker_main
from inference.ocr.config import WorkerSetup

FAULT_MARKER: Final = "fault"
"""File in the parent's temporary directory that records a fault, and process ids."""


def crash() -> None:
    """Read an invalid address, as a decoder's bug does."""
    ctypes.string_at(0)


def crash_once() -> None:
    """Crash, in the first worker only."""
    marker = Path.cwd().parent / FAULT_MARKER
    if not marker.exists():
        marker.touch()
        crash()


def killed() -> None:
    """End by SIGKILL, as when the kernel runs out of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def eat_memory() -> None:
    """Allocate memory without end."""
    blocks = []
    while True:
        blocks.append(bytearray(64 * 1024 * 1024))


def hang() -> None:
    """Start a child process, as Tesseract is one, and never reply."""
    helper = subprocess.Popen(["sleep", "600"])
    (Path.cwd().parent / FAULT_MARKER).write_text(f"{os.getpid()} {helper.pid}", encoding="ascii")
    time.sleep(600)


def busy_loop() -> None:
    """Compute without end."""
    while True:
        pass


def send_malformed_reply() -> None:
    """Send a malformed reply."""
    for descriptor in range(3, 20):  # the pipe to the parent is one of them
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\x00\x00\x00\x05[1,2]")
    os._exit(0)


FAULTS: Final = {
    601: crash, 602: crash_once, 603: killed, 604: eat_memory, 605: hang, 606: busy_loop,
    607: send_malformed_reply,
}  # fmt: skip


def serve(request: dict[str, Any], setup: WorkerSetup) -> dict[str, Any]:
    """Serve a request as the real worker does, with the selected fault."""
    if request["do"] == "page" and request["page"] == 2 and request["dpi"] in FAULTS:
        FAULTS[request["dpi"]]()
    # For the test of a worker's environment.
    if request["do"] == "count" and request["kind"] == "png":
        return {
            "environment": dict(os.environ),
            "modules": list(sys.modules),
            "memory": resource.getrlimit(resource.RLIMIT_AS),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
        }
    return worker_main.serve(request, setup)


if __name__ == "__main__":
    worker_main.main(serve)
