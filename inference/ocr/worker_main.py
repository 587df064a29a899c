"""The process that opens strangers' files: `python -m inference.ocr.worker_main SETUP`.

It knows a scratch directory, which it runs in, and its limits: no login, no key, no network address.
It ends with its parent, and takes the Tesseract that it runs along: both are one process group.
"""

from __future__ import annotations

import contextlib
import math
import os
import queue
import resource
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytesseract
from PIL import Image, ImageDraw

from inference.ocr import page_reader
from inference.ocr.config import MEGABYTE, Setup
from inference.ocr.errors import PageError
from inference.ocr.ipc import ConnectionClosed, receive, send
from inference.ocr.tesseract import Tesseract

Answer = Callable[[dict[str, Any], Setup], dict[str, Any]]
"""Answers one request, or raises `Fault`."""

_FILES: Final = 256
"""Open files; a few are needed."""
_BYTES_PER_PIXEL: Final = 4
"""Of the largest file written: a page's image, and what Tesseract finds on it."""


def answer(request: dict[str, Any], setup: Setup) -> dict[str, Any]:
    """`count`, `page` or `warm`.

    Raises:
        Fault, MemoryError: it cannot be done.
    """
    limits = setup.limits
    if request["do"] == "count":
        return {"pages": page_reader.count(request["path"], request["kind"], limits)}
    tesseract = Tesseract(request["languages"], time.monotonic() + limits.page_s)
    if request["do"] == "warm":
        image = Image.new("L", (120, 60), 255)
        ImageDraw.Draw(image).text((10, 20), "warm", fill=0)
        tesseract.read(image, None)
        return {"pages": 0}
    page = page_reader.read_page(
        request["path"],
        request["kind"],
        request["page"],
        limits,
        tesseract,
        dpi=request["dpi"],
        words=request["words"],
    )
    return {"page": page}


def main(answer: Answer = answer) -> None:
    """Answer the parent's requests until it has gone.

    Args:
        answer: tests bring one with faults.
    """
    setup = Setup.from_json(sys.argv[1])
    requests, replies = _pipes()
    _restrict(setup)
    os.environ.update(TESSDATA_PREFIX=setup.tessdata, OMP_THREAD_LIMIT="1")
    pytesseract.pytesseract.tesseract_cmd = setup.tesseract
    tempfile.tempdir = str(Path.cwd())
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    send(replies, {"ready": True})
    while True:
        request = waiting.get()
        _allow_seconds(setup.limits.page_s)
        send(replies, _answered(answer, request, setup))


def _answered(answer: Answer, request: dict[str, Any], setup: Setup) -> dict[str, Any]:
    limits = setup.limits
    try:
        return answer(request, setup)
    except PageError as fault:
        if fault.code == "time_limit":
            return PageError(fault.code, seconds=round(limits.page_s)).to_json()
        return fault.to_json()
    except MemoryError:
        return PageError("out_of_memory", megabytes=limits.memory_mb).to_json()
    except Exception:  # its message may quote the file
        return PageError("damaged_page").to_json()


def _listen(requests: int, waiting: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Take requests, also while one is being answered: that is how the parent's end is noticed."""
    while True:
        try:
            waiting.put(receive(requests))
        except ConnectionClosed:
            os.killpg(0, signal.SIGKILL)


def _pipes() -> tuple[int, int]:
    """The pipes to the parent, moved out of the way of libraries that print."""
    requests, replies = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    return requests, replies


def _restrict(setup: Setup) -> None:
    """Bound what this process and its Tesseract may take, for good."""
    with contextlib.suppress(OSError):
        os.nice(max(0, setup.nice - os.nice(0)))
    with contextlib.suppress(OSError):  # Linux: where memory runs out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    memory = setup.limits.memory_mb * MEGABYTE
    written = setup.limits.pixels * _BYTES_PER_PIXEL
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_NOFILE, _FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(
            ValueError, OSError
        ):  # a lower one is in force, or the system has none
            resource.setrlimit(what, (most, most))


def _allow_seconds(seconds: float) -> None:
    """Have the kernel end this process if it computes for longer, whatever becomes of the parent."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


if __name__ == "__main__":
    main()
