"""Errors of a file or one of its pages, and their messages.

A worker process sends only a code and numbers; the message is made here, from this table. So no content
of a file can get into a message, not even from a worker that a hostile file has compromised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MESSAGES: Final[Mapping[str, str]] = {
    # -- of a file --------------------------------------------------------------------------------
    "unreadable_file": "the file cannot be opened: it is damaged, truncated or of another type",
    "encrypted_file": "the PDF is protected with a password; submit a copy without one",
    "no_pages": "the file has no page",
    "no_such_page": "the file has {pages} pages; the requested range begins after them",
    "too_many_pages": "{pages} pages requested, at most {limit} in one job; request a range (pages=)",
    "file_too_large": "the file has {bytes} bytes, at most {limit} are read; split it",
    # -- of a page, or of a file whose pages cannot be counted -------------------------------------
    "damaged_page": "the page cannot be decoded: the file is damaged or truncated",
    "page_too_large": "the page has more than {megapixels} million pixels, or a side of more than "
    "{side}; scale it down",
    "too_much_text": "the page has more than {limit} characters of text",
    "out_of_memory": "the page needs more memory than the limit of {megabytes} MB",
    "time_limit": "the page was not read within {seconds} s",
    "document_time_limit": "the document's limit of {seconds} s was reached before this page; "
    "request a range (pages=)",
    "reader_crashed": "the OCR process crashed on this page, twice",
    "reader_failed": "Tesseract failed on this page",
}


class PageError(Exception):
    """A file or a page cannot be read.

    Attributes:
        code: a key of MESSAGES.
        numbers: fields of its message.
    """

    def __init__(self, code: str, **numbers: int) -> None:
        super().__init__(code)
        self.code = code
        self.numbers = numbers

    @property
    def message(self) -> str:
        """The message, without content of the file."""
        return MESSAGES[self.code].format_map(self.numbers)

    def to_json(self) -> dict[str, object]:
        """For the parent process."""
        return {"error": self.code, "numbers": self.numbers}

    @classmethod
    def from_json(cls, reply: Mapping[str, object]) -> PageError:
        """From a worker's reply, of which only a known code and numbers are used.

        Raises:
            ValueError, TypeError, KeyError: it is malformed.
        """
        code, numbers = reply["error"], reply["numbers"]
        if not isinstance(code, str) or not isinstance(numbers, Mapping):
            raise TypeError
        error = cls(code, **{str(name): int(number) for name, number in numbers.items()})
        _ = error.message
        return error
