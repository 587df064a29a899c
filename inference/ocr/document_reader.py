"""Reads the pages of one file in parallel worker processes; each page may fail by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from inference.errors import CallCancelled
from inference.ocr.config import OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.ipc import ConnectionClosed, ReplyTimeout
from inference.ocr.worker_pool import OcrWorkerPool
from inference.protocol import Cancelled
from vestry.jobs.ocr import OcrPage, OcrResult

REPLY_MARGIN_S: Final = 5.0
"""Seconds beyond a page's limit in which a worker ends its Tesseract and replies."""
MAX_ATTEMPTS: Final = 2
"""Attempts at a page whose worker died: it may have been killed for another process's memory."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One file and how to read it.

    Attributes:
        path: of the file.
        kind: as `vestry.jobs.ocr.file_kind` returns it.
        languages: joined by `+`.
        pages: the first and the last, from 1; None for all.
        dpi: see `inference.ocr.protocol.OcrRequest`.
        words: whether the result has words with their boxes.
        urgent: of an interactive job.
    """

    path: str
    kind: str
    languages: str
    pages: tuple[int, int] | None
    dpi: int | None
    words: bool
    urgent: bool


class DocumentReader:
    """Reads one file.

    Args:
        request: the file and how to read it.
        workers: the processes that read pages.
        limits: on pages and time.
        cancelled: polled before each page.
    """

    def __init__(
        self, request: ReadRequest, workers: OcrWorkerPool, limits: OcrLimits, cancelled: Cancelled
    ) -> None:
        self._request = request
        self._workers = workers
        self._limits = limits
        self._cancelled = cancelled
        self._deadline = time.monotonic() + limits.document_s
        self._cancel_lock = threading.Lock()
        self._stop = threading.Event()

    def read(self) -> OcrResult:
        """Read the pages; the result has them in order.

        Raises:
            PageError: the file as a whole cannot be read.
            CallCancelled: `cancelled` returned True.
            BackendUnavailable: no worker process can be started.
        """
        count = int(self._call({"do": "count"})["pages"])
        numbers = self._page_numbers(count)
        with ThreadPoolExecutor(min(len(numbers), self._workers.count)) as pool:
            try:
                pages = list(pool.map(self._page, numbers))
            except BaseException:
                self._stop.set()
                raise
        return OcrResult.of(tuple(pages), count)

    def _page_numbers(self, count: int) -> Sequence[int]:
        if count < 1:
            raise PageError("no_pages")
        first, last = self._request.pages or (1, count)
        if first > count:
            raise PageError("no_such_page", pages=count)
        numbers = range(first, min(last, count) + 1)
        if len(numbers) > self._limits.pages:
            raise PageError("too_many_pages", pages=len(numbers), limit=self._limits.pages)
        return numbers

    def _page(self, number: int) -> OcrPage:
        with self._cancel_lock:
            if self._stop.is_set() or self._cancelled():
                self._stop.set()
                raise CallCancelled
        try:
            return self._read_page(number)
        except PageError as error:
            return OcrPage(number, "", error=(error.code, error.message))

    def _read_page(self, number: int) -> OcrPage:
        if time.monotonic() > self._deadline:
            raise PageError("document_time_limit", seconds=round(self._limits.document_s))
        request = {
            "do": "page",
            "page": number,
            "languages": self._request.languages,
            "dpi": self._request.dpi,
            "words": self._request.words,
        }
        reply = self._call(request)
        try:
            return OcrPage.from_json({**reply["page"], "page": number, "error": None})
        except (KeyError, TypeError, ValueError):  # only a compromised worker replies so
            raise PageError("reader_crashed") from None

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to a worker, and to a second one if the first dies.

        Raises:
            PageError: from the worker's reply, or because it died or timed out.
        """
        request = {"path": self._request.path, "kind": self._request.kind, **request}
        page_s = self._limits.page_s
        for _ in range(MAX_ATTEMPTS):
            try:
                reply = self._workers.call(
                    request, page_s + REPLY_MARGIN_S, urgent=self._request.urgent
                )
            except ConnectionClosed:
                continue
            except ReplyTimeout:
                raise PageError("time_limit", seconds=round(page_s)) from None
            if "error" in reply:
                try:
                    raise PageError.from_json(reply)
                except (KeyError, TypeError, ValueError):
                    continue
            return reply
        raise PageError("reader_crashed")
