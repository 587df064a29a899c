"""A file's pages, read in parallel by child processes: what one page does is no other page's matter."""

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

GRACE_S: Final = 5.0
"""Seconds that a child has, beyond a page's, to end its Tesseract and tell."""
TRIES: Final = 2
"""A page whose process died gets a second one: the first may have been killed for another's sins."""


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """What is to be read, and how.

    Attributes:
        path: the file.
        kind: as `vestry.file_kinds` tells it.
        languages: joined by `+`.
        pages: the first and the last, from 1; None for all.
        dpi: see `inference.ocr.protocol.OcrRequest`.
        words: whether to give them with their boxes.
        urgent: whether someone waits.
    """

    path: str
    kind: str
    languages: str
    pages: tuple[int, int] | None
    dpi: int | None
    words: bool
    urgent: bool


class DocumentReader:
    """One file on its way through the children.

    Args:
        order: what is to be read.
        children: who read.
        limits: on pages and time.
        cancelled: asked before each page.
    """

    def __init__(
        self, order: ReadRequest, children: OcrWorkerPool, limits: OcrLimits, cancelled: Cancelled
    ) -> None:
        self._order = order
        self._children = children
        self._limits = limits
        self._cancelled = cancelled
        self._until = time.monotonic() + limits.document_s
        self._asking = threading.Lock()
        self._stop = threading.Event()

    def read(self) -> OcrResult:
        """Read the pages, and put them in order.

        Raises:
            Fault: of the file as a whole.
            Abandoned: nobody wants it any more.
            Unavailable: there is nobody to read it.
        """
        count = int(self._ask({"do": "count"})["pages"])
        numbers = self._chosen(count)
        with ThreadPoolExecutor(min(len(numbers), self._children.count)) as pool:
            try:
                pages = list(pool.map(self._page, numbers))
            except BaseException:
                self._stop.set()
                raise
        return OcrResult.of(tuple(pages), count)

    def _chosen(self, count: int) -> Sequence[int]:
        if count < 1:
            raise PageError("no_pages")
        first, last = self._order.pages or (1, count)
        if first > count:
            raise PageError("no_such_page", pages=count)
        numbers = range(first, min(last, count) + 1)
        if len(numbers) > self._limits.pages:
            raise PageError("too_many_pages", pages=len(numbers), limit=self._limits.pages)
        return numbers

    def _page(self, number: int) -> OcrPage:
        with self._asking:
            if self._stop.is_set() or self._cancelled():
                self._stop.set()
                raise CallCancelled
        try:
            return self._read(number)
        except PageError as fault:
            return OcrPage(number, "", error=(fault.code, fault.message))

    def _read(self, number: int) -> OcrPage:
        if time.monotonic() > self._until:
            raise PageError("document_time_limit", seconds=round(self._limits.document_s))
        request = {
            "do": "page",
            "page": number,
            "languages": self._order.languages,
            "dpi": self._order.dpi,
            "words": self._order.words,
        }
        reply = self._ask(request)
        try:
            return OcrPage.from_json({**reply["page"], "page": number, "error": None})
        except (KeyError, TypeError, ValueError):  # no child of ours speaks like that
            raise PageError("reader_crashed") from None

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a child answers; a second one is asked where the first dies.

        Raises:
            Fault: what the child says is wrong, or what became of it.
        """
        request = {"path": self._order.path, "kind": self._order.kind, **request}
        seconds = self._limits.page_s
        for _ in range(TRIES):
            try:
                reply = self._children.ask(request, seconds + GRACE_S, urgent=self._order.urgent)
            except ConnectionClosed:
                continue
            except ReplyTimeout:
                raise PageError("time_limit", seconds=round(seconds)) from None
            if "fault" in reply:
                try:
                    raise PageError.from_json(reply)
                except (KeyError, TypeError, ValueError):
                    continue
            return reply
        raise PageError("reader_crashed")
