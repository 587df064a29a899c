"""OCR jobs: the text of a file, an image of a page or a document of many."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeGuard

from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.base import COST_BYTES, Digest, Prepared
from vestry.lanes import KINDS, Kind
from vestry.validation import PAYLOAD_LIMIT, check_label, dump_json

FileKind = Literal["png", "jpeg", "tiff", "webp", "pdf"]

READ_KINDS: Final = "PNG, JPEG, TIFF, WebP or PDF"
"""The supported types of files, for messages."""

_MAGIC: Final[tuple[tuple[bytes, FileKind], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),  # with 64-bit offsets
    (b"MM\0+", "tiff"),
)
_PDF_WITHIN: Final = 1024
"""Bytes in which a PDF's signature may begin; PDF readers accept this."""


def file_kind(content: bytes) -> FileKind | None:
    """The type of a file, by its first bytes and never by its name; None if it is not supported."""
    for magic, kind in _MAGIC:
        if content.startswith(magic):
            return kind
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    if b"%PDF-" in content[:_PDF_WITHIN]:
        return "pdf"
    return None


FILE: Final = "file"
"""The name of the job's blob."""
FILE_LIMIT: Final = 64 * 1024 * 1024
"""Most bytes of a file; the caller splits larger documents over jobs."""

_LANGUAGE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}(?:/[A-Za-z0-9_-]{1,40})?")
_LANGUAGES_MAX: Final = 8
_DPI: Final = (50, 1200)


@dataclass(frozen=True, slots=True)
class Ocr:
    """The text of an image or a PDF, page by page.

    Attributes:
        file: its content as bytes, or its path, which is read on construction. PNG, JPEG, TIFF (also
            of many pages), WebP or PDF, detected by content; up to 64 MiB.
        languages: languages of the text, by Tesseract's names (`eng`, `deu`, …), the main one first;
            by default the workers' setting.
        pages: read only this page, or the pages from the first to the last given; counted from 1.
        dpi: resolution of a scan that does not record it, and of the rendering of PDF pages without
            text; 50 to 1200.
        word_boxes: return each word with its box and confidence.
        model: a model's name in the catalogue; by default routing chooses.
        keep_file: False deletes the file once the job has succeeded. Private files are always
            deleted.
    """

    file: bytes | str | os.PathLike[str] = field(repr=False)
    languages: Sequence[str] | None = None
    pages: tuple[int, int] | int | None = None
    dpi: int | None = None
    word_boxes: bool = False
    model: str | None = None
    keep_file: bool = True
    kind: ClassVar[Kind] = "ocr"

    def __post_init__(self) -> None:
        content = _content(self.file)
        if not content:
            raise InvalidInput(FILE, "must not be empty")
        if len(content) > FILE_LIMIT:
            raise PayloadTooLarge(FILE, len(content), FILE_LIMIT)
        if file_kind(content) is None:
            raise InvalidInput(FILE, f"must be a {READ_KINDS} file")
        object.__setattr__(self, "file", content)
        object.__setattr__(self, "languages", _languages(self.languages))
        object.__setattr__(self, "pages", _pages(self.pages))
        if self.dpi is not None:
            lowest, highest = _DPI
            if not _is_int(self.dpi) or not lowest <= self.dpi <= highest:
                raise InvalidInput("dpi", f"must be a whole number from {lowest} to {highest}")
        if self.model is not None:
            check_label("model", self.model)

    def __repr__(self) -> str:
        return f"Ocr({len(self.content)} bytes)"

    @property
    def content(self) -> bytes:
        """The bytes of the file."""
        assert isinstance(self.file, bytes)  # noqa: S101 - set by __post_init__
        return self.file

    def prepare(
        self,
        digest: Digest,  # noqa: ARG002 - only documents are digested
        payload_limit: int = PAYLOAD_LIMIT,
    ) -> Prepared:
        """Serialise: `{"languages", "pages", "dpi", "word_boxes"}`, and the file as a blob.

        Raises:
            PayloadTooLarge: over `payload_limit` bytes.
        """
        body = {
            "languages": self.languages,
            "pages": self.pages,
            "dpi": self.dpi,
            "word_boxes": self.word_boxes,
        }
        payload = dump_json("languages", body)
        if len(payload) > payload_limit:
            raise PayloadTooLarge("languages", len(payload), payload_limit)
        return Prepared(
            kind=self.kind,
            pool=KINDS[self.kind],
            model=self.model,
            payload=payload,
            cost=1 + len(self.content) // COST_BYTES,
            keep_payload=self.keep_file,
            blobs={FILE: self.content},
        )


def _content(file: object) -> bytes:
    if isinstance(file, (bytes, bytearray, memoryview)):
        return bytes(file)
    if not isinstance(file, (str, os.PathLike)):
        raise InvalidInput(FILE, "must be bytes or a path")
    try:
        status = Path(file).stat()
        if stat.S_ISDIR(status.st_mode):
            raise InvalidInput(FILE, "must be a file, not a directory")
        if not stat.S_ISREG(status.st_mode):
            raise InvalidInput(FILE, "must be a regular file")
        if status.st_size > FILE_LIMIT:
            raise PayloadTooLarge(FILE, status.st_size, FILE_LIMIT)
        return Path(file).read_bytes()
    # `from None`: the error names the file, and a file's name may reveal its content.
    except FileNotFoundError:
        raise InvalidInput(FILE, "does not exist") from None
    except PermissionError:
        raise InvalidInput(FILE, "cannot be read by this account (permission denied)") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise InvalidInput(FILE, f"cannot be read ({type(error).__name__})") from None


def _languages(languages: object) -> tuple[str, ...] | None:
    if languages is None:
        return None
    if isinstance(languages, str) or not isinstance(languages, Sequence):
        raise InvalidInput("languages", "must be a list")
    if not 1 <= len(languages) <= _LANGUAGES_MAX:
        raise InvalidInput("languages", f"must be 1 to {_LANGUAGES_MAX}")
    for index, language in enumerate(languages):
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            raise InvalidInput(
                f"languages[{index}]", "must be a Tesseract language name, such as eng"
            )
    return tuple(languages)


def _pages(pages: object) -> tuple[int, int] | None:
    if pages is None:
        return None
    span = (pages, pages) if _is_int(pages) else pages
    match span:
        case [first, last] if _is_int(first) and _is_int(last) and 1 <= first <= last:
            return first, last
    raise InvalidInput("pages", "must be one page, or the first and the last page, counted from 1")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


PageSource = Literal["text-layer", "ocr"]


@dataclass(frozen=True, slots=True)
class OcrWord:
    """One word.

    Attributes:
        box: left, top, right, bottom in the page's unit, from the upper left corner of the page as
            submitted, before any rotation.
        confidence: 0 to 1; None in a text layer, which is exact.
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
        confidence: mean over the characters, 0 to 1; None for a text layer or a page without words.
        error: content-free code and message of a page that could not be read; its neighbours were.
        source: the page's own text layer, or OCR of its image.
        rotation: degrees clockwise by which it was rotated before OCR: 0, 90, 180 or 270.
        skew: degrees clockwise by which it was deskewed after that.
        width: in `unit`.
        height: in `unit`.
        unit: `px` for an image, `pt` (1/72 inch) for a PDF.
        words: None unless they were requested.
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
        """From the worker's JSON; unknown fields, of a newer worker, are ignored."""
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
        """The stored form; without `words` unless they were requested."""
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
    """The text of a file.

    Attributes:
        text: of all pages, with a blank line between them.
        pages: in the file's order, failed ones included.
        page_count: pages of the file, of which only a range may have been requested.
    """

    text: str = field(repr=False)
    pages: tuple[OcrPage, ...]
    page_count: int

    @classmethod
    def of(cls, pages: tuple[OcrPage, ...], page_count: int) -> OcrResult:
        """From pages; the text is theirs, joined."""
        texts = (page.text.strip() for page in pages)
        return cls("\n\n".join(filter(None, texts)), pages, page_count)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> OcrResult:
        """From the worker's `{"text", "pages", "page_count"}`."""
        pages = tuple(OcrPage.from_json(page) for page in body["pages"])
        return cls(str(body["text"]), pages, int(body.get("page_count", len(pages))))

    def to_json(self) -> dict[str, Any]:
        """The stored form."""
        pages = [page.to_json() for page in self.pages]
        return {"text": self.text, "pages": pages, "page_count": self.page_count}


def _word(body: Mapping[str, Any]) -> OcrWord:
    left, top, right, bottom = map(float, body["box"])
    return OcrWord(str(body["text"]), (left, top, right, bottom), body.get("confidence"))
