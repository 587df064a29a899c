"""What a backend offers that reads pages: see `inference.protocol` for those of the other kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from inference.protocol import Cancelled, not_cancelled
from vestry.jobs.ocr import OcrResult


@dataclass(frozen=True, slots=True)
class OcrRequest:
    """How a file is to be read.

    Attributes:
        languages: it is written in, the main one first, as Tesseract names them; None for the
            model's own.
        pages: the first and the last to be read, from 1; None for all.
        dpi: resolution of a scan that does not tell it, and at which pages are rendered.
        word_boxes: give each word with its box.
    """

    languages: tuple[str, ...] | None = None
    pages: tuple[int, int] | None = None
    dpi: int | None = None
    word_boxes: bool = False


class OcrModel(Protocol):
    """A model that reads pages."""

    def read(
        self,
        file: bytes,
        request: OcrRequest,
        *,
        urgent: bool = False,
        cancelled: Cancelled = not_cancelled,
    ) -> OcrResult:
        """Read a file: PNG, JPEG, TIFF, WebP or PDF, told by its content.

        A page that cannot be read is reported in its `error`, and the others are kept; where all of
        them failed, so it is told too.

        Args:
            file: its content.
            request: how to read it.
            urgent: someone waits; its pages go before others.
            cancelled: asked between pages.

        Raises:
            UnreadableFile, EncryptedFile, FileTooLarge: the file is no good, as a whole.
            BadRequest: a language is not here, or the range lies behind the last page.
            Abandoned: `cancelled` turned True.
            Unavailable: the pages cannot be read now, whatever is on them.
        """
        ...

    def warm_up(self) -> None:
        """Make the first real call as fast as the later ones.

        Raises:
            ModelMissing: the language data cannot be used.
        """
        ...
