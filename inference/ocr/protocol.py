"""Protocol of an OCR model; see `inference.protocol` for those of the other kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference.protocol import Cancelled, not_cancelled
from vestry.jobs.ocr import OcrResult


@dataclass(frozen=True, slots=True)
class OcrRequest:
    """How to read a file.

    Attributes:
        languages: of its text, the main one first, by Tesseract's names; None for the model's own.
        pages: the first and the last, from 1; None for all.
        dpi: resolution of a scan that does not state one, and for rendering pages.
        word_boxes: whether the result has words with their boxes.
    """

    languages: tuple[str, ...] | None = None
    pages: tuple[int, int] | None = None
    dpi: int | None = None
    word_boxes: bool = False


class OcrModel(Protocol):
    """A model that reads the text of pages."""

    def read(
        self,
        file: bytes,
        request: OcrRequest,
        *,
        urgent: bool = False,
        cancelled: Cancelled = not_cancelled,
    ) -> OcrResult:
        """Read a file: PNG, JPEG, TIFF, WebP or PDF, detected by its content.

        A page that cannot be read has an `error` in the result, also if all pages have one.

        Args:
            file: its content.
            request: how to read it.
            urgent: of an interactive job; its pages are read before others.
            cancelled: polled between pages.

        Raises:
            UnreadableFile, EncryptedFile, FileTooLarge: the file as a whole cannot be read.
            BadRequest: a language is not installed, or the range begins after the last page.
            CallCancelled: `cancelled` returned True.
            BackendUnavailable: no page can be read now.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as later ones.

        Raises:
            ModelMissing: the language data cannot be used.
        """
        ...
