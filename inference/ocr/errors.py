"""What can be wrong with a file or one of its pages.

A child says only a code and numbers; the sentence is made here, from this table. So nothing of a file
can get into a message, not even from a child that a file has taken over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

MESSAGES: Final[Mapping[str, str]] = {
    # -- of a file --------------------------------------------------------------------------------
    "unreadable_file": "the file cannot be opened: it is damaged, cut off or not what it begins as",
    "encrypted_file": "the PDF is protected with a password; submit a copy without one",
    "no_pages": "the file has no page",
    "no_such_page": "the file has {pages} pages; the range asked for begins after them",
    "too_many_pages": "{pages} pages, of which {limit} are read in one job; name a range (pages=)",
    "file_too_large": "the file has {bytes} bytes, of which {limit} are read; split it",
    # -- of a page, or of a file that cannot even be looked into ----------------------------------
    "damaged_page": "the page cannot be decoded: the file is damaged or cut off",
    "page_too_large": "the page has more than {megapixels} million pixels, or a side of more than "
    "{side}; scale it down",
    "too_much_text": "the page has more than {limit} characters of text",
    "out_of_memory": "the page needs more memory than the {megabytes} MB that one may take",
    "time_limit": "the page was not read within {seconds} s",
    "document_time_limit": "the document's {seconds} s were over before this page was read; "
    "name a range (pages=)",
    "reader_crashed": "the reader crashed on this page, twice",
    "reader_failed": "Tesseract failed on this page",
}


class PageError(Exception):
    """A file or a page cannot be read.

    Attributes:
        code: one of MESSAGES.
        numbers: what its message names.
    """

    def __init__(self, code: str, **numbers: int) -> None:
        super().__init__(code)
        self.code = code
        self.numbers = numbers

    @property
    def message(self) -> str:
        """The sentence for a person."""
        return MESSAGES[self.code].format_map(self.numbers)

    def to_json(self) -> dict[str, object]:
        """For the parent."""
        return {"fault": self.code, "numbers": self.numbers}

    @classmethod
    def from_json(cls, reply: Mapping[str, object]) -> PageError:
        """From what a child sent, of which only numbers are believed.

        Raises:
            ValueError, TypeError, KeyError: it is no such thing.
        """
        code, numbers = reply["fault"], reply["numbers"]
        if not isinstance(code, str) or not isinstance(numbers, Mapping):
            raise TypeError
        fault = cls(code, **{str(name): int(number) for name, number in numbers.items()})
        _ = fault.message
        return fault
