"""Read documents from files of JSON Lines or `REFERENCE text` lines.

An invalid line becomes a `BadLine` with its number and a reason that quotes nothing of it; the other
lines are read. Memory holds one line at a time and, to detect repeated ids, a 64-bit digest of each id.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, BinaryIO, Final

from vestry.errors import InvalidInput
from vestry.jobs.embedding import Document
from vestry.validation import PAYLOAD_LIMIT, check_label, check_text, dump_json

DOCUMENT_LIMIT: Final = PAYLOAD_LIMIT - 1024
"""Bytes of one document as JSON: a payload without the job's own fields (source, id, names)."""

LINE_LIMIT: Final = PAYLOAD_LIMIT * 6
"""Bytes of a line, above which it is refused: JSON may write a character as six, \\uXXXX."""

SAMPLE_LINES: Final = 20
"""First lines of a file from which its format is detected."""

# `Ge1:1 In the beginning` or `1 John 1:1 That which`: one word that contains a digit, or a book's name
# and chapter:verse.
_REFERENCE = re.compile(r"((?:\d )?[^\W\d]+\.? \d+:\d+\S*|\S*\d\S*)(?:\s+(.*))?", re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f]")
_FIELDS = frozenset({"text", "id", "date", "metadata"})


@dataclass(frozen=True, slots=True)
class Record:
    """One document of a file; `size` is its size in a payload, in bytes."""

    line: int
    document: Document
    size: int


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that cannot be indexed, and the reason."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class RepeatedLine:
    """A line without an id that repeats the date and text of an earlier line: nothing to index."""

    line: int


Line = Record | BadLine | RepeatedLine


class NotDocumentsError(Exception):
    """The first lines of a file hold no document; the message gives the reason and quotes nothing."""


class _RepeatedId(InvalidInput):
    """A valid document whose id an earlier line has."""


@dataclass(slots=True)
class Reader:
    """Reads the files of one run; repeated ids are detected across files.

    Attributes:
        ignored: unknown fields of JSON lines, for one warning at the end.
    """

    ignored: set[str] = field(default_factory=set)
    _seen: set[int] = field(default_factory=set)

    def read(self, stream: BinaryIO) -> Iterator[Line]:
        """Read every line of a file that is not blank.

        Args:
            stream: the file, open in binary mode.

        Raises:
            NotDocumentsError: the file is not text, or none of its first SAMPLE_LINES lines is a
                document: the file as a whole is unsuitable.
        """
        lines = _numbered_lines(stream)
        head = list(islice(lines, SAMPLE_LINES))
        if head and head[0][1] and head[0][1].startswith((b"\xff\xfe", b"\xfe\xff")):
            yield BadLine(1, "the file is UTF-16; convert it to UTF-8")
            return
        is_json = _looks_like_json(raw for _, raw in head)
        sample: list[Line] = []
        errors: list[InvalidInput] = []
        for number, raw in head:
            try:
                sample.append(self._parse_line(number, raw, is_json))
            except InvalidInput as error:
                sample.append(BadLine(number, str(error)))
                if not isinstance(error, _RepeatedId):
                    errors.append(error)
        all_bad = bool(head) and len(errors) == len(head)
        if _is_binary([raw for _, raw in head if raw is not None], all_bad=all_bad):
            raise NotDocumentsError("the file does not look like text; only UTF-8 can be read")
        if all_bad and len(head) == SAMPLE_LINES:
            raise NotDocumentsError(
                f"none of the first {SAMPLE_LINES} lines is a document, as JSON or as "
                f"`REFERENCE text`; line {head[0][0]}: {errors[0]}"
            )
        yield from sample
        for number, raw in lines:
            try:
                yield self._parse_line(number, raw, is_json)
            except InvalidInput as error:
                yield BadLine(number, str(error))

    def _parse_line(self, number: int, raw: bytes | None, is_json: bool) -> Record | RepeatedLine:
        if raw is None:
            raise InvalidInput(
                "line", f"more than {DOCUMENT_LIMIT} bytes, the limit of a document; split it"
            )
        try:
            text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInput("line", f"not UTF-8 at byte {error.start + 1}") from None
        document = self._parse_json(text) if is_json else _parse_reference(text)
        size = _checked_size(document)
        if self._is_new(document):
            return Record(number, document, size)
        if document.id is None:
            return RepeatedLine(number)
        raise _RepeatedId("id", "an earlier line has the same id")

    def _parse_json(self, text: str) -> Document:
        try:
            value = json.loads(text, parse_constant=_refuse_constant)
        except json.JSONDecodeError as error:
            raise InvalidInput("line", f"malformed JSON at column {error.colno}") from None
        except (ValueError, RecursionError):
            raise InvalidInput("line", "JSON with a value that cannot be stored") from None
        if not isinstance(value, dict):
            raise InvalidInput("line", "not a JSON object")
        if len(self.ignored) < SAMPLE_LINES:
            self.ignored.update(value.keys() - _FIELDS)
        return _document_from(value)

    def _is_new(self, document: Document) -> bool:
        key = json.dumps(
            [document.id] if document.id is not None else [document.date, document.text]
        )
        digest = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest())
        if digest in self._seen:
            return False
        self._seen.add(digest)
        return True


def count_lines(stream: BinaryIO) -> int:
    """Number of lines of a file that are not blank."""
    return sum(1 for _ in _numbered_lines(stream))


def _numbered_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Lines that are not blank, with their numbers; None for a line longer than LINE_LIMIT."""
    number = 0
    while raw := stream.readline(LINE_LIMIT + 1):
        number += 1
        if len(raw) > LINE_LIMIT and not raw.endswith(b"\n"):
            while (rest := stream.readline(LINE_LIMIT)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        elif not raw.isspace():
            yield number, raw


def _is_binary(lines: Sequence[bytes], *, all_bad: bool) -> bool:
    """Whether most lines are not text. A line of binary data can look like a `REFERENCE text` line."""
    not_text = sum(not _is_text(line) for line in lines)
    return 2 * not_text > len(lines) and (all_bad or any(b"\0" in line for line in lines))


def _is_text(line: bytes) -> bool:
    try:
        return _CONTROL.search(line.decode()) is None
    except UnicodeDecodeError:
        return False


def _looks_like_json(lines: Iterable[bytes | None]) -> bool:
    """Whether half of the lines begin an object: one broken line must not change the format."""
    starts = [line.removeprefix(b"\xef\xbb\xbf").lstrip() for line in lines if line is not None]
    return 2 * sum(line.startswith(b"{") for line in starts) >= len(starts)


def _parse_reference(line: str) -> Document:
    match = _REFERENCE.fullmatch(line.strip())
    if match is None:
        raise InvalidInput("line", "neither JSON nor `REFERENCE text`")
    return Document(text=match[2] or "", id=match[1])


def _document_from(value: dict[str, Any]) -> Document:
    if "text" not in value:
        raise InvalidInput("text", "is required")
    document_id: Any = value.get("id")
    if isinstance(document_id, int) and not isinstance(document_id, bool):
        document_id = str(document_id)
    return Document(
        text=value["text"],
        id=document_id,
        date=value.get("date") or None,
        metadata=value.get("metadata"),
    )


def _checked_size(document: Document) -> int:
    """The document's size in a payload, in bytes.

    Raises:
        InvalidInput: the document is invalid or too large.
    """
    check_text("text", document.text)
    if document.id is not None:
        check_label("id", document.id)
    if document.date is not None:
        check_label("date", document.date)
    if document.metadata is not None and not isinstance(document.metadata, dict):
        raise InvalidInput("metadata", "must be a JSON object")
    row = {"text": document.text, "date": document.date, "metadata": document.metadata}
    size = len(dump_json("metadata", row)) + 2 * len((document.id or "").encode())
    if size > DOCUMENT_LIMIT:
        raise InvalidInput("text", f"{size} bytes; at most {DOCUMENT_LIMIT} are allowed: split it")
    return size


def _refuse_constant(_: str) -> float:
    """Refuse NaN and Infinity, which JSON does not have."""
    raise ValueError
