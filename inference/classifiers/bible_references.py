"""Bible references in English, such as `1 Cor 13:4-7`: parsed, checked, and written in canonical form.

The canon has 66 books, with chapters and verses numbered as in the King James Version (`canon.json`).
Books may have their English names or usual abbreviations, with or without a period; numbered ones `1`,
`I`, `1st` or `First`. A colon or a period separates chapter and verse, commas separate verses,
semicolons passages.
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

MAX_CHARACTERS: Final = 200
"""Longest reference; a longer text is not one."""

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
        name: in a canonical reference.
        verses: number of verses of each chapter.
    """

    name: str
    verses: tuple[int, ...]

    def has(self, chapter: int, verse: int = 1) -> bool:
        """Whether the book has a chapter and verse."""
        return 1 <= chapter <= len(self.verses) and 1 <= verse <= self.verses[chapter - 1]


class _Malformed(Exception):
    pass


@cache
def books() -> dict[str, Book]:
    """The books by each of their names, in lower case without spaces and periods."""
    by_name: dict[str, Book] = {}
    for row in json.loads(_CANON.read_text(encoding="utf-8")):
        book = Book(row.get("cited", row["name"]), tuple(row["verses"]))
        number = row["name"][0] if row["name"][0].isdigit() else ""
        for name in (row["name"], *(number + other for other in row["also"])):
            by_name[_key(name)] = book
    return by_name


def normalised(text: str) -> str | None:
    """A reference in canonical form, such as `1 Corinthians 13:4-7`; None if it is malformed.

    An unknown book, a chapter or verse beyond the last, or a range that runs backwards makes it
    malformed.
    """
    if len(text) > MAX_CHARACTERS:
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
        # After a comma a bare number is another verse if a verse precedes it, else a chapter.
        previous_chapter = chapter if separator == "," else None
        next_book, piece, chapter = _passage(item, book, previous_chapter)
        joined = separator == "," and next_book is book and ":" not in piece.partition("-")[0]
        yield ("," if joined else "; ") + piece
        book = next_book


def _passage(
    item: str, book: Book | None, previous_chapter: int | None
) -> tuple[Book, str, int | None]:
    """One passage: its book, its canonical form, and the chapter that a following verse belongs to."""
    match = _PASSAGE.fullmatch(item)
    if match is None:
        raise _Malformed
    if match["book"] is not None:
        name = _ORDINALS.get(match["ordinal"] or "", "") + match["book"]
        book = books().get(_key(name))
        if book is None:
            raise _Malformed
        written, chapter = _numbers(match["numbers"], book, None)
        return book, f"{book.name} {written}", chapter
    if book is None:
        raise _Malformed
    written, chapter = _numbers(match["numbers"], book, previous_chapter)
    return book, written, chapter


def _numbers(text: str, book: Book, previous_chapter: int | None) -> tuple[str, int | None]:
    match = _NUMBERS.fullmatch(text)
    if match is None:
        raise _Malformed
    a, b, c, d = (None if match[name] is None else int(match[name]) for name in "abcd")
    part, end = match["part"] or "", match["end"] or ""
    assert a is not None  # noqa: S101 - the pattern's
    single_chapter = len(book.verses) == 1 and b is None and max(a, c or 0) > 1
    if b is not None:
        chapter, verse, prefix = a, b, f"{a}:"
    elif previous_chapter is not None or single_chapter:
        # A further verse, or a verse of a book that has one chapter.
        chapter, verse = previous_chapter or 1, a
        prefix = "" if previous_chapter is not None else "1:"
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
