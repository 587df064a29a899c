"""What came of reading a file: its text, page by page, and the words' boxes where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

PageSource = Literal["text-layer", "ocr"]


@dataclass(frozen=True, slots=True)
class OcrWord:
    """One word.

    Attributes:
        box: left, top, right, bottom in the page's unit, from the upper left corner of the page as
            it was given, whichever way its text runs.
        confidence: 0 to 1; None in a text layer, which nobody had to guess.
    """

    text: str = field(repr=False)
    box: tuple[float, float, float, float]
    confidence: float | None


@dataclass(frozen=True, slots=True)
class OcrPage:
    """One page.

    Attributes:
        page: its number in the file, from 1.
        text: lines end with a newline, paragraphs with a blank line. Empty for an empty page.
        confidence: mean over the characters, 0 to 1; None for a text layer, and without a word.
        error: content-free code and message of a page that could not be read; its neighbours were.
        source: the page's own text layer, or read from its image.
        rotation: degrees clockwise by which it was turned to be read: 0, 90, 180 or 270.
        skew: degrees clockwise by which it was straightened after that.
        width: in `unit`.
        height: in `unit`.
        unit: `px` of an image, `pt` (1/72 inch) of a PDF.
        words: None unless they were asked for.
    """

    page: int
    text: str = field(repr=False)
    confidence: float | None = None
    error: tuple[str, str] | None = None
    source: PageSource | None = None
    rotation: int = 0
    skew: float = 0.0
    width: float | None = None
    height: float | None = None
    unit: Literal["px", "pt"] | None = None
    words: tuple[OcrWord, ...] | None = field(default=None, repr=False)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> OcrPage:
        """From the worker's JSON; fields of a newer worker are passed over."""
        error, words = body.get("error"), body.get("words")
        return cls(
            page=int(body["page"]),
            text=str(body["text"]),
            confidence=body.get("confidence"),
            error=None if error is None else (str(error["code"]), str(error["message"])),
            source=body.get("source"),
            rotation=int(body.get("rotation", 0)),
            skew=float(body.get("skew", 0.0)),
            width=body.get("width"),
            height=body.get("height"),
            unit=body.get("unit"),
            words=None if words is None else tuple(_word(word) for word in words),
        )

    def to_json(self) -> dict[str, Any]:
        """As it is stored; `words` is left out where they were not asked for."""
        error = None
        if self.error is not None:
            error = {"code": self.error[0], "message": self.error[1]}
        body: dict[str, Any] = {
            "page": self.page,
            "text": self.text,
            "confidence": self.confidence,
            "error": error,
            "source": self.source,
            "rotation": self.rotation,
            "skew": self.skew,
            "width": self.width,
            "height": self.height,
            "unit": self.unit,
        }
        if self.words is not None:
            body["words"] = [
                {"text": word.text, "box": list(word.box), "confidence": word.confidence}
                for word in self.words
            ]
        return body


@dataclass(frozen=True, slots=True)
class OcrResult:
    """What was read.

    Attributes:
        text: of all pages, with a blank line between them.
        pages: in the file's order, those that failed included.
        page_count: pages of the file, of which only a range may have been asked for.
    """

    text: str = field(repr=False)
    pages: tuple[OcrPage, ...]
    page_count: int

    @classmethod
    def of(cls, pages: tuple[OcrPage, ...], page_count: int) -> OcrResult:
        """From the pages alone."""
        texts = (page.text.strip() for page in pages)
        return cls("\n\n".join(filter(None, texts)), pages, page_count)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> OcrResult:
        """From the worker's `{"text", "pages", "page_count"}`."""
        pages = tuple(OcrPage.from_json(page) for page in body["pages"])
        return cls(str(body["text"]), pages, int(body.get("page_count", len(pages))))

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        pages = [page.to_json() for page in self.pages]
        return {"text": self.text, "pages": pages, "page_count": self.page_count}


def _word(body: Mapping[str, Any]) -> OcrWord:
    left, top, right, bottom = map(float, body["box"])
    return OcrWord(str(body["text"]), (left, top, right, bottom), body.get("confidence"))
