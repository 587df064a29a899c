"""OCR worker process with one optional fault on the second page; reads as `ocr.worker_main` does.

The fake is the fault alone: it strikes where a decoder of a hostile page would have it. What to do is
said by the job's `dpi`, which pages with text of their own have no other use for.
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

STRUCK: Final = "struck"
"""File in the parent's scratch directory that remembers the first blow, and pids of helpers."""


def crash() -> None:
    """Read where nothing is, as a decoder's bug does."""
    ctypes.string_at(0)


def crash_once() -> None:
    """The same, but for the second child."""
    mark = Path.cwd().parent / STRUCK
    if not mark.exists():
        mark.touch()
        crash()


def killed() -> None:
    """Be ended by the kernel, as when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def eat_memory() -> None:
    """Take more than there is to be had."""
    eaten = []
    while True:
        eaten.append(bytearray(64 * 1024 * 1024))


def hang() -> None:
    """Never answer, with a program running as Tesseract does."""
    helper = subprocess.Popen(["sleep", "600"])
    (Path.cwd().parent / STRUCK).write_text(f"{os.getpid()} {helper.pid}", encoding="ascii")
    time.sleep(600)


def burn() -> None:
    """Compute for ever."""
    while True:
        pass


def babble() -> None:
    """Answer what is no answer."""
    for descriptor in range(3, 20):  # the pipe to the parent is one of them
        with contextlib.suppress(OSError):
            os.write(descriptor, b"\x00\x00\x00\x05[1,2]")
    os._exit(0)


FAULTS: Final = {
    601: crash, 602: crash_once, 603: killed, 604: eat_memory, 605: hang, 606: burn, 607: babble,
}  # fmt: skip


def serve(request: dict[str, Any], setup: WorkerSetup) -> dict[str, Any]:
    """As the real one, but for the fault."""
    if request["do"] == "page" and request["page"] == 2 and request["dpi"] in FAULTS:
        FAULTS[request["dpi"]]()
    if request["do"] == "count" and request["kind"] == "png":  # for who asks what a child knows
        return {
            "environment": dict(os.environ),
            "modules": list(sys.modules),
            "memory": resource.getrlimit(resource.RLIMIT_AS),
            "core": resource.getrlimit(resource.RLIMIT_CORE),
        }
    return worker_main.serve(request, setup)


if __name__ == "__main__":
    worker_main.main(serve)
