"""Entry point of the process that opens untrusted files: `python -m inference.ocr.worker_main SETUP`.

It gets a temporary directory, in which it runs, and its limits: no login, no key, no network address.
It ends with its parent, together with the Tesseract that it runs: both are one process group.
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
from inference.ocr.config import MEGABYTE, WorkerSetup
from inference.ocr.errors import PageError
from inference.ocr.ipc import ConnectionClosed, receive, send
from inference.ocr.tesseract import Tesseract

Serve = Callable[[dict[str, Any], WorkerSetup], dict[str, Any]]
"""Serves one request, or raises `PageError`."""

_MAX_OPEN_FILES: Final = 256
"""A few are needed."""
_BYTES_PER_PIXEL: Final = 4
"""Of the largest file written: a page's image, or Tesseract's result."""


def serve(request: dict[str, Any], setup: WorkerSetup) -> dict[str, Any]:
    """Serve `count`, `page` or `warm`.

    Raises:
        PageError, MemoryError: it fails.
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


def main(serve: Serve = serve) -> None:
    """Serve the parent's requests until it ends.

    Args:
        serve: replaced by tests of faults.
    """
    setup = WorkerSetup.from_json(sys.argv[1])
    requests, replies = _pipes()
    _restrict(setup)
    os.environ.update(TESSDATA_PREFIX=setup.tessdata, OMP_THREAD_LIMIT="1")
    pytesseract.pytesseract.tesseract_cmd = setup.tesseract
    tempfile.tempdir = str(Path.cwd())
    pending: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_receive_requests, args=(requests, pending), daemon=True).start()
    send(replies, {"ready": True})
    while True:
        request = pending.get()
        _limit_cpu_time(setup.limits.page_s)
        send(replies, _reply(serve, request, setup))


def _reply(serve: Serve, request: dict[str, Any], setup: WorkerSetup) -> dict[str, Any]:
    limits = setup.limits
    try:
        return serve(request, setup)
    except PageError as error:
        if error.code == "time_limit":
            return PageError(error.code, seconds=round(limits.page_s)).to_json()
        return error.to_json()
    except MemoryError:
        return PageError("out_of_memory", megabytes=limits.memory_mb).to_json()
    except Exception:  # its message may quote the file
        return PageError("damaged_page").to_json()


def _receive_requests(requests: int, pending: queue.SimpleQueue[dict[str, Any]]) -> None:
    """Receive requests, also while one is served: so the end of the parent is detected at once."""
    while True:
        try:
            pending.put(receive(requests))
        except ConnectionClosed:
            os.killpg(0, signal.SIGKILL)


def _pipes() -> tuple[int, int]:
    """The pipes to the parent, on other descriptors: libraries may print to 1 and 2."""
    requests, replies = os.dup(0), os.dup(1)
    devnull = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(devnull, descriptor)
    return requests, replies


def _restrict(setup: WorkerSetup) -> None:
    """Limit the resources of this process and its Tesseract, permanently."""
    with contextlib.suppress(OSError):
        os.nice(max(0, setup.nice - os.nice(0)))
    with contextlib.suppress(OSError):  # Linux: the first to be killed when memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    memory = setup.limits.memory_mb * MEGABYTE
    written = setup.limits.pixels * _BYTES_PER_PIXEL
    for kind, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        # The limit is lower already, or the system has none.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, limit))


def _limit_cpu_time(seconds: float) -> None:
    """Have the kernel end this process after `seconds` of CPU time, independent of the parent."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (limit, hard))


if __name__ == "__main__":
    main()
