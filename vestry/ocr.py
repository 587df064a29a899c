"""A job that reads a file: an image of a page, or a document of many."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, TypeGuard

from vestry.checks import PAYLOAD_LIMIT, check_label, dump_json
from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.file_kinds import READ_KINDS, file_kind
from vestry.jobs import KINDS, UNIT_BYTES, Digest, Prepared
from vestry.kinds import Kind

FILE: Final = "file"
"""The name of the job's blob."""
FILE_LIMIT: Final = 64 * 1024 * 1024
"""Bytes of a file; larger documents are split over jobs."""

_LANGUAGE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,39}(?:/[A-Za-z0-9_-]{1,40})?")
_LANGUAGES_MAX: Final = 8
_DPI: Final = (50, 1200)


@dataclass(frozen=True, slots=True)
class Ocr:
    """The text of an image or a PDF, page by page.

    Attributes:
        file: its content as bytes, or its path, which is read here and now. PNG, JPEG, TIFF (of many
            pages too), WebP or PDF, told by content; up to 64 MiB.
        languages: what it is written in, as Tesseract names languages (`eng`, `deu`, …), the main
            one first; by default what the workers are set up with.
        pages: read only this page, or these, first and last included; counted from 1.
        dpi: resolution of a scan that does not tell it, and at which pages of a PDF without text are
            rendered; 50 to 1200.
        word_boxes: give each word with its box and confidence too.
        model: a name the workers know; by default what the task calls for.
        keep_file: False keeps nothing of the file once the job has succeeded. Private files are
            never kept.
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
            raise InvalidInput(FILE, "is empty")
        if len(content) > FILE_LIMIT:
            raise PayloadTooLarge(FILE, len(content), FILE_LIMIT)
        if file_kind(content) is None:
            raise InvalidInput(FILE, f"is not a {READ_KINDS} file")
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
        """The file."""
        assert isinstance(self.file, bytes)  # noqa: S101 - made so above
        return self.file

    def prepare(
        self,
        digest: Digest,  # noqa: ARG002 - of use to kinds with documents
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
            units=1 + len(self.content) // UNIT_BYTES,
            keep_payload=self.keep_file,
            blobs={FILE: self.content},
        )


def _content(file: object) -> bytes:
    if isinstance(file, (bytes, bytearray, memoryview)):
        return bytes(file)
    if not isinstance(file, (str, os.PathLike)):
        raise InvalidInput(FILE, "is neither bytes nor a path")
    try:
        found = Path(file).stat()
        if stat.S_ISDIR(found.st_mode):
            raise InvalidInput(FILE, "is a directory")
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInput(FILE, "is not a regular file")
        if found.st_size > FILE_LIMIT:
            raise PayloadTooLarge(FILE, found.st_size, FILE_LIMIT)
        return Path(file).read_bytes()
    # `from None`: the error names the file, and a file's name may say what is in it.
    except FileNotFoundError:
        raise InvalidInput(FILE, "does not exist") from None
    except PermissionError:
        raise InvalidInput(FILE, "may not be read by this account") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in a path
        raise InvalidInput(FILE, f"cannot be read ({type(error).__name__})") from None


def _languages(languages: object) -> tuple[str, ...] | None:
    if languages is None:
        return None
    if isinstance(languages, str) or not isinstance(languages, Sequence):
        raise InvalidInput("languages", "is not a list")
    if not 1 <= len(languages) <= _LANGUAGES_MAX:
        raise InvalidInput("languages", f"must be 1 to {_LANGUAGES_MAX}")
    for place, language in enumerate(languages):
        if not isinstance(language, str) or not _LANGUAGE.fullmatch(language):
            raise InvalidInput(f"languages[{place}]", "is no language of Tesseract's, such as eng")
    return tuple(languages)


def _pages(pages: object) -> tuple[int, int] | None:
    if pages is None:
        return None
    given = (pages, pages) if _is_int(pages) else pages
    match given:
        case [first, last] if _is_int(first) and _is_int(last) and 1 <= first <= last:
            return first, last
    raise InvalidInput("pages", "must be a page or the first and the last, counted from 1")


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
