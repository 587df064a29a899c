"""`vestry.cli.index.reader`: formats, bad lines by number, repeated ids, bounded memory."""

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


def reason_of_bad_line(line: bytes | str) -> str:
    """Read the line between two valid ones, which must be read; the reason of its refusal."""
    raw = line.encode() if isinstance(line, str) else line
    first, middle, last = read(b'{"text":"before"}\n' + raw + b'\n{"text":"after"}\n')
    assert isinstance(first, Record)
    assert isinstance(last, Record)
    assert isinstance(middle, BadLine)
    assert (middle.line, last.line) == (2, 3)
    return middle.reason


def test_reader_reads_fields_of_json_lines() -> None:
    row = {"text": "Up early.", "id": "e1", "date": "1660-01-11", "metadata": {"mood": "merry"}}
    (record,) = read(json.dumps(row))
    assert isinstance(record, Record)
    assert record.document.text == "Up early."
    assert record.document.id == "e1"
    assert record.document.date == "1660-01-11"
    assert record.document.metadata == {"mood": "merry"}


def test_reader_accepts_numeric_ids() -> None:
    (record,) = read('{"text":"x","id":17}')
    assert isinstance(record, Record)
    assert record.document.id == "17"


def test_reader_uses_reference_as_id() -> None:
    lines = read("Ge1:1 In the beginning God\nPs119:105 Thy word\n1 John 4:8 He that loveth not\n")
    assert [r.document.id for r in lines if isinstance(r, Record)] == [
        "Ge1:1",
        "Ps119:105",
        "1 John 4:8",
    ]
    assert isinstance(lines[2], Record)
    assert lines[2].document.text == "He that loveth not"


def test_reader_detects_one_format_per_file() -> None:
    broken_first = read('{"text": broken\n{"text":"fine"}\n')
    assert isinstance(broken_first[0], BadLine)
    assert isinstance(broken_first[1], Record)
    verses = read("Ge1:1 In the beginning\nno reference here\nGe1:3 And God said\n")
    assert [type(line) for line in verses] == [Record, BadLine, Record]


def test_blank_lines_are_skipped_but_numbered() -> None:
    lines = read('\n\n{"text":"a"}\n   \n{"text":"b"}')
    assert [line.line for line in lines] == [3, 5]
    assert count_lines(io.BytesIO(b'\n\n{"text":"a"}\n   \n{"text":"b"}')) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "unclosed', "malformed JSON at column"),
        ("{}", "text: is required"),
        ('{"text": ""}', "text: must not be empty"),
        ('{"text": " \\n "}', "text: must not be empty"),
        ('{"text": null}', "text: must be text"),
        ('{"text": ["a"]}', "text: must be text"),
        ('{"text": "a\\u0000b"}', "NUL"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": "a", "id": ""}', "id: must be 1 to"),
        ('{"text": "a", "id": {}}', "id: must be text"),
        ('{"text": "a", "id": true}', "id: must be text"),
        ('{"text": "a", "date": 7}', "date: must be text"),
        ('{"text": "a", "metadata": [1]}', "metadata: must be a JSON object"),
        ('{"text": "a", "metadata": {"x": NaN}}', "cannot be stored"),
        ('{"text": "a", "metadata": {"x": 1e999}}', "metadata: must contain only JSON"),
        ('["text"]', "not a JSON object"),
        ("9" * 5000, "cannot be stored"),
        ("[" * 100_000, "cannot be stored"),
        (b'{"text": "caf\xe9"}', "not UTF-8 at byte 14"),
        (b'{"text": "a\x00b"}', "malformed JSON"),
    ],
)
def test_reader_reports_bad_line_with_reason(line: bytes | str, reason: str) -> None:
    assert reason in reason_of_bad_line(line)


def test_bad_line_reason_does_not_quote_the_line() -> None:
    for line in ('{"text": "SECRET', '{"SECRET": "SECRET"}', '{"text": "SECRET\\u0000"}'):
        assert "SECRET" not in reason_of_bad_line(line)


def test_utf_16_file_is_one_bad_line_and_byte_order_mark_is_accepted() -> None:
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
def test_binary_file_is_refused_as_a_whole(data: bytes) -> None:
    with pytest.raises(NotDocumentsError, match="does not look like text"):
        read(data)


def test_file_without_document_in_first_lines_is_refused_as_a_whole() -> None:
    prose = "It was a bright cold day.\n"
    with pytest.raises(NotDocumentsError, match=r"line 2: .*neither JSON") as caught:
        read("\n" + prose * 200)
    assert "bright" not in str(caught.value)
    assert len(read(prose * 19)) == 19
    lines = read(prose * 19 + "Ge1:1 In the beginning\n" + prose)
    assert [type(line) for line in lines].count(Record) == 1


def test_file_read_twice_gives_bad_lines_and_is_not_refused() -> None:
    reader = Reader()
    data = "".join(f'{{"text":"x","id":"{n}"}}\n' for n in range(30))
    assert all(isinstance(line, Record) for line in read(data, reader))
    assert all(isinstance(line, BadLine) for line in read(data, reader))


def test_document_over_the_limit_is_refused_with_the_limit() -> None:
    assert str(DOCUMENT_LIMIT) in reason_of_bad_line(json.dumps({"text": "a" * DOCUMENT_LIMIT}))
    assert str(DOCUMENT_LIMIT) in reason_of_bad_line(
        json.dumps({"text": '"' * (DOCUMENT_LIMIT // 2)})
    )
    (fits,) = read(json.dumps({"text": "a" * (DOCUMENT_LIMIT - 200)}))
    assert isinstance(fits, Record)


def test_endless_line_is_refused_in_bounded_memory() -> None:
    class EndlessLine(io.RawIOBase):
        remaining = LINE_LIMIT * 20

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            size = min(len(buffer), self.remaining)
            self.remaining -= size
            buffer[:size] = b"a" * size
            return size

    tracemalloc.start()
    (bad,) = Reader().read(io.BufferedReader(EndlessLine()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert isinstance(bad, BadLine)
    assert peak < LINE_LIMIT * 5


def test_repeated_id_is_refused_within_and_across_files() -> None:
    reader = Reader()
    assert "id" in str(read('{"text":"a","id":"1"}\n{"text":"b","id":"1"}', reader)[1])
    (again,) = read('{"text":"c","id":"1"}', reader)
    assert isinstance(again, BadLine)


def test_repeated_entry_without_id_is_one_document() -> None:
    rows = [
        '{"text":"Lay abed.","date":"1660-01-01"}',
        '{"text":"Lay abed.","date":"1660-01-02"}',
        '{"text":"Lay abed.","date":"1660-01-01"}',
    ]
    assert [type(line) for line in read("\n".join(rows))] == [Record, Record, RepeatedLine]


def test_reader_collects_ignored_fields() -> None:
    reader = Reader()
    read('{"text":"a","title":"b"}', reader)
    assert reader.ignored == {"title"}


def test_empty_file_has_no_lines() -> None:
    assert read(b"") == []
