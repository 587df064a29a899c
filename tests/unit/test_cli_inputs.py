"""Files become documents; a line that cannot be used is named and spoils no neighbour."""

from __future__ import annotations

import io
import json
import tracemalloc

import pytest

from vestry.cli.index.reader import (
    DOCUMENT_LIMIT,
    LINE_LIMIT,
    BadLine,
    Line,
    NotDocumentsError,
    Reader,
    Record,
    RepeatedLine,
    count_lines,
)


def read(data: bytes | str, reader: Reader | None = None) -> list[Line]:
    raw = data.encode() if isinstance(data, str) else data
    return list((reader or Reader()).read(io.BytesIO(raw)))


def one_bad(line: bytes | str) -> str:
    """Between two good lines, the middle one is refused and they are not."""
    raw = line.encode() if isinstance(line, str) else line
    first, middle, last = read(b'{"text":"before"}\n' + raw + b'\n{"text":"after"}\n')
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(middle, BadLine)
    assert (middle.line, last.line) == (2, 3)
    return middle.reason


def test_json_lines_give_documents_with_their_fields() -> None:
    row = {"text": "Up early.", "id": "e1", "date": "1660-01-11", "metadata": {"mood": "merry"}}
    (record,) = read(json.dumps(row))
    assert isinstance(record, Record)
    assert record.document.text == "Up early."
    assert record.document.id == "e1"
    assert record.document.date == "1660-01-11"
    assert record.document.metadata == {"mood": "merry"}


def test_numbers_are_taken_as_ids() -> None:
    (record,) = read('{"text":"x","id":17}')
    assert isinstance(record, Record)
    assert record.document.id == "17"


def test_reference_lines_give_the_reference_as_id() -> None:
    found = read("Ge1:1 In the beginning God\nPs119:105 Thy word\n1 John 4:8 He that loveth not\n")
    assert [r.document.id for r in found if isinstance(r, Record)] == [
        "Ge1:1",
        "Ps119:105",
        "1 John 4:8",
    ]
    assert isinstance(found[2], Record)
    assert found[2].document.text == "He that loveth not"


def test_the_format_is_the_files_not_the_lines() -> None:
    broken_first = read('{"text": broken\n{"text":"fine"}\n')
    assert isinstance(broken_first[0], BadLine)
    assert isinstance(broken_first[1], Record)
    verses = read("Ge1:1 In the beginning\nno reference here\nGe1:3 And God said\n")
    assert [type(line) for line in verses] == [Record, BadLine, Record]


def test_blank_lines_count_for_numbers_only() -> None:
    found = read('\n\n{"text":"a"}\n   \n{"text":"b"}')
    assert [line.line for line in found] == [3, 5]
    assert count_lines(io.BytesIO(b'\n\n{"text":"a"}\n   \n{"text":"b"}')) == 2


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "unclosed', "malformed JSON at column"),
        ("{}", "text: is missing"),
        ('{"text": ""}', "text: is empty"),
        ('{"text": " \\n "}', "text: is empty"),
        ('{"text": null}', "text: is not text"),
        ('{"text": ["a"]}', "text: is not text"),
        ('{"text": "a\\u0000b"}', "NUL"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": "a", "id": ""}', "id: must be 1 to"),
        ('{"text": "a", "id": {}}', "id: is not text"),
        ('{"text": "a", "id": true}', "id: is not text"),
        ('{"text": "a", "date": 7}', "date: is not text"),
        ('{"text": "a", "metadata": [1]}', "metadata: is not a JSON object"),
        ('{"text": "a", "metadata": {"x": NaN}}', "cannot be stored"),
        ('{"text": "a", "metadata": {"x": 1e999}}', "metadata: cannot be written"),
        ('["text"]', "not a JSON object"),
        ("9" * 5000, "cannot be stored"),
        ("[" * 100_000, "cannot be stored"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte 14"),
        (b'{"text": "a\x00b"}', "malformed JSON"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(line: bytes | str, says: str) -> None:
    assert says in one_bad(line)


def test_no_reason_quotes_the_line() -> None:
    for line in ('{"text": "SECRET', '{"SECRET": "SECRET"}', '{"text": "SECRET\\u0000"}'):
        assert "SECRET" not in one_bad(line)


def test_utf_16_is_one_error_and_a_byte_order_mark_none() -> None:
    (bad,) = read('{"text":"a"}\n{"text":"b"}\n'.encode("utf-16"))
    assert isinstance(bad, BadLine)
    assert "UTF-16" in bad.reason
    (good,) = read(b'\xef\xbb\xbf{"text":"a"}')
    assert isinstance(good, Record)


@pytest.mark.parametrize(
    "data",
    [
        bytes(range(256)) * 8,
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x00",
        b"caf\xe9\n",
        '{"text":"a"}\n'.encode("utf-16-le"),
    ],
)
def test_what_is_not_text_is_refused_whole(data: bytes) -> None:
    with pytest.raises(NotDocumentsError, match="does not look like text"):
        read(data)


def test_a_file_without_a_document_in_its_first_lines_is_refused_whole() -> None:
    prose = "It was a bright cold day.\n"
    with pytest.raises(NotDocumentsError, match=r"line 2: .*neither JSON") as caught:
        read("\n" + prose * 200)
    assert "bright" not in str(caught.value)
    assert len(read(prose * 19)) == 19
    found = read(prose * 19 + "Ge1:1 In the beginning\n" + prose)
    assert [type(line) for line in found].count(Record) == 1


def test_a_file_given_twice_is_not_a_wrong_file() -> None:
    reader = Reader()
    data = "".join(f'{{"text":"x","id":"{n}"}}\n' for n in range(30))
    assert all(isinstance(line, Record) for line in read(data, reader))
    assert all(isinstance(line, BadLine) for line in read(data, reader))


def test_a_document_over_the_limit_is_refused_with_the_limit() -> None:
    assert str(DOCUMENT_LIMIT) in one_bad(json.dumps({"text": "a" * DOCUMENT_LIMIT}))
    assert str(DOCUMENT_LIMIT) in one_bad(json.dumps({"text": '"' * (DOCUMENT_LIMIT // 2)}))
    (fits,) = read(json.dumps({"text": "a" * (DOCUMENT_LIMIT - 200)}))
    assert isinstance(fits, Record)


def test_a_line_without_end_is_given_up_in_bounded_memory() -> None:
    class Endless(io.RawIOBase):
        left = LINE_LIMIT * 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            size = min(len(buffer), self.left)
            self.left -= size
            buffer[:size] = b"a" * size
            return size

    tracemalloc.start()
    (bad,) = Reader().read(io.BufferedReader(Endless()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bad, BadLine)
    assert peak < LINE_LIMIT * 5


def test_a_repeated_id_is_refused_within_and_across_files() -> None:
    reader = Reader()
    assert "id" in str(read('{"text":"a","id":"1"}\n{"text":"b","id":"1"}', reader)[1])
    (again,) = read('{"text":"c","id":"1"}', reader)
    assert isinstance(again, BadLine)


def test_without_ids_the_same_entry_twice_is_one_document() -> None:
    rows = [
        '{"text":"Lay abed.","date":"1660-01-01"}',
        '{"text":"Lay abed.","date":"1660-01-02"}',
        '{"text":"Lay abed.","date":"1660-01-01"}',
    ]
    assert [type(line) for line in read("\n".join(rows))] == [Record, Record, RepeatedLine]


def test_fields_without_a_meaning_are_remembered_for_a_warning() -> None:
    reader = Reader()
    read('{"text":"a","title":"b"}', reader)
    assert reader.ignored == {"title"}


def test_an_empty_file_gives_nothing() -> None:
    assert read(b"") == []
