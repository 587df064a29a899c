"""Passage references in English, such as `1 Cor 13:4-7`: read, checked, and written in one form.

The canon is that of 66 books, chapters and verses as the King James Version counts them
(`canon.json`). Books go by their English names and usual abbreviations, a period after them or not;
numbered ones by `1`, `I`, `1st` or `First`. Chapter and verse stand apart by a colon or a period,
verses by commas, passages by semicolons.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

LONGEST: Final = 200
"""Characters of a reference; beyond, it is some other text."""

_CANON: Final = Path(__file__).with_name("canon.json")
_ORDINALS: Final = {
    name: number
    for number, names in (
        ("1", "1 1st i first"),
        ("2", "2 2nd ii second"),
        ("3", "3 3rd iii third"),
    )
    for name in names.split()
}
_SEPARATOR = re.compile(r"\s*([;,])\s*")
_PASSAGE = re.compile(
    r"(?:(?P<ordinal>[123](?:st|nd|rd)?|i{1,3}|first|second|third)?\s*"
    r"(?<![a-z])(?P<book>[a-z][a-z. ]*))?"
    r"(?P<numbers>\d[\d:.\-a-f ]*)",
    re.ASCII,
)
_NUMBERS = re.compile(
    r"(?P<a>\d{1,3})(?:\s*[:.]\s*(?P<b>\d{1,3}))?(?P<part>[a-c]|ff?)?"
    r"(?:\s*-\s*(?P<c>\d{1,3})(?:\s*[:.]\s*(?P<d>\d{1,3}))?(?P<end>[a-c])?)?\s*",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Book:
    """A book of the canon.

    Attributes:
        name: as a reference names it.
        verses: of each chapter.
    """

    name: str
    verses: tuple[int, ...]

    def has(self, chapter: int, verse: int = 1) -> bool:
        """Whether there is such a chapter and verse."""
        return 1 <= chapter <= len(self.verses) and 1 <= verse <= self.verses[chapter - 1]


class _Malformed(Exception):
    pass


@cache
def books() -> dict[str, Book]:
    """The books by every name they go by: lower case, without spaces and periods."""
    found: dict[str, Book] = {}
    for row in json.loads(_CANON.read_text(encoding="utf-8")):
        book = Book(row.get("cited", row["name"]), tuple(row["verses"]))
        number = row["name"][0] if row["name"][0].isdigit() else ""
        for name in (row["name"], *(number + other for other in row["also"])):
            found[_key(name)] = book
    return found


def normalised(text: str) -> str | None:
    """A reference in its usual form, such as `1 Corinthians 13:4-7`; None if it is none.

    Nothing is guessed: a book there is not, a chapter or verse beyond the last, and a range that runs
    backwards make it malformed.
    """
    if len(text) > LONGEST:
        return None
    plain = unicodedata.normalize("NFKC", text).strip().lower()
    plain = re.sub(r"\s*[\u2010-\u2015\u2212]\s*", "-", plain)
    try:
        return "".join(_passages(" ".join(plain.split())))
    except _Malformed:
        return None


def _passages(plain: str) -> Iterator[str]:
    first, *rest = _SEPARATOR.split(plain)
    book, piece, chapter = _passage(first, None, None)
    yield piece
    for separator, item in zip(rest[::2], rest[1::2], strict=True):
        # After a comma a bare number is another verse, if verses were the subject, else a chapter.
        follows = chapter if separator == "," else None
        named, piece, chapter = _passage(item, book, follows)
        joined = separator == "," and named is book and ":" not in piece.partition("-")[0]
        yield ("," if joined else "; ") + piece
        book = named


def _passage(item: str, book: Book | None, follows: int | None) -> tuple[Book, str, int | None]:
    """One passage: its book, how it is written, and the chapter that a verse after it would be of."""
    match = _PASSAGE.fullmatch(item)
    if match is None:
        raise _Malformed
    if match["book"] is not None:
        named = _ORDINALS.get(match["ordinal"] or "", "") + match["book"]
        book, follows = books().get(_key(named)), None
        if book is None:
            raise _Malformed
        written, chapter = _numbers(match["numbers"], book, None)
        return book, f"{book.name} {written}", chapter
    if book is None:
        raise _Malformed
    written, chapter = _numbers(match["numbers"], book, follows)
    return book, written, chapter


def _numbers(text: str, book: Book, follows: int | None) -> tuple[str, int | None]:
    match = _NUMBERS.fullmatch(text)
    if match is None:
        raise _Malformed
    a, b, c, d = (None if match[name] is None else int(match[name]) for name in "abcd")
    part, end = match["part"] or "", match["end"] or ""
    assert a is not None  # noqa: S101 - the pattern's
    alone = len(book.verses) == 1 and b is None and max(a, c or 0) > 1
    if b is not None:
        chapter, verse, prefix = a, b, f"{a}:"
    elif follows is not None or alone:
        # A further verse; or a verse of a book that has one chapter.
        chapter, verse = follows or 1, a
        prefix = "" if follows is not None else "1:"
    elif d is None:
        return _chapters(book, a, c, marks=part + end), None
    else:  # from the beginning of a chapter
        chapter, verse, prefix = a, 1, f"{a}:"
    last = (chapter, verse) if c is None else (chapter, c) if d is None else (c, d)
    if not book.has(chapter, verse) or not book.has(*last):
        raise _Malformed
    if c is None:
        return f"{prefix}{verse}{part}", chapter
    if last <= (chapter, verse) or part.startswith("f"):
        raise _Malformed
    to = f"{last[1]}" if last[0] == chapter else f"{last[0]}:{last[1]}"
    return f"{prefix}{verse}{part}-{to}{end}", last[0]


def _chapters(book: Book, first: int, last: int | None, *, marks: str) -> str:
    if marks or not book.has(first) or (last is not None and (last <= first or not book.has(last))):
        raise _Malformed
    return f"{first}" if last is None else f"{first}-{last}"


def _key(name: str) -> str:
    return re.sub(r"[ .]", "", name.lower())
