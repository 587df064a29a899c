"""Invalid command lines and files on the installed command: one error each, no side effects."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.stacks import ECHO
from tests.waiting import BULK_S
from vestry import Document, Embedding, Vestry
from workers.stack.background import BackgroundStack

pytestmark = pytest.mark.stack(ECHO)

VESTRY = Path(sys.executable).with_name("vestry")
UNKNOWN_JOB = "00000000-0000-7000-8000-000000000000"
TOO_LONG_TEXT = "x" * 3000
"""More than the model accepts, and short enough for an argument."""


@dataclass(frozen=True, slots=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """The JSON document that --json prints."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    def assert_no_traceback(self) -> None:
        assert "Traceback" not in self.out + self.err
        assert 'File "' not in self.out + self.err


@dataclass(frozen=True, slots=True)
class BadCommand:
    """An invalid command line, and the error it must print."""

    arguments: tuple[str | bytes, ...]
    code: str
    message: str
    exit_code: int = 2


SUBMIT = ("submit", "embedding", "--owner", "ann", "--privacy", "private")
INDEX = ("index", "--owner", "ann", "--privacy", "private", "--source", "diary")
BAD_COMMANDS = {
    "empty text": BadCommand((*SUBMIT, "--text", "fine", "--text", ""), "invalid_input", "texts[1]"),
    "blank text": BadCommand((*SUBMIT, "--text", " \t"), "invalid_input", "texts[0]"),
    "wrong encoding": BadCommand((*SUBMIT, "--text", b"caf\xe9"), "invalid_input", "texts[0]"),
    "oversize text": BadCommand((*SUBMIT, "--wait", "--text", TOO_LONG_TEXT), "too_long", "text 0", 1),
    "unknown model": BadCommand(
        (*SUBMIT, "--wait", "--text", "a", "--model", "none"), "unknown_model", "echo", 1
    ),
    "bad vectors": BadCommand((*SUBMIT, "--wait", "--text", "echo!nan"), "bad_vector", "text 0", 1),
    "missing privacy": BadCommand(
        ("submit", "embedding", "--owner", "ann", "--text", "a"), "usage", "--privacy"
    ),
    "unknown privacy": BadCommand(
        ("submit", "embedding", "--owner", "ann", "--text", "a", "--privacy", "public"),
        "usage", "--privacy",
    ),
    "missing owner": BadCommand(
        ("submit", "embedding", "--privacy", "private", "--text", "a"), "usage", "--owner"
    ),
    "empty owner": BadCommand(
        ("submit", "embedding", "--privacy", "private", "--owner", "", "--text", "a"),
        "invalid_input", "owner",
    ),
    "unknown job, status": BadCommand(("status", UNKNOWN_JOB), "unknown_job", "job"),
    "unknown job, wait": BadCommand(("wait", UNKNOWN_JOB), "unknown_job", "job"),
    "unknown job, result": BadCommand(("result", UNKNOWN_JOB), "unknown_job", "job"),
    "unknown job, cancel": BadCommand(("cancel", UNKNOWN_JOB), "unknown_job", "job"),
    "no job's id": BadCommand(("status", "tomorrow"), "invalid_input", "job"),
    "unknown lane": BadCommand(("lanes", "pause", "private.bulk.cloud"), "unknown_lane", "lane"),
    "unknown space": BadCommand(
        ("search", "a", "--owner", "ann", "--space", "none"), "unknown_space", "space"
    ),
    "empty query": BadCommand(("search", "", "--owner", "ann"), "invalid_input", "query"),
    "bad source": BadCommand(
        ("index", "f", "--owner", "ann", "--privacy", "private", "--source", "My Diary"),
        "invalid_input", "source",
    ),
    "missing file": BadCommand((*INDEX, "nowhere.jsonl"), "invalid_input", "nowhere.jsonl"),
    "a directory": BadCommand((*INDEX, "/"), "invalid_input", "/"),
}  # fmt: skip


def run(home: Path, *arguments: str | bytes) -> CommandResult:
    environment = {"VESTRY_HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    done = subprocess.run(
        [VESTRY, *arguments], env=environment, capture_output=True, timeout=120, check=False
    )
    return CommandResult(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def results(up: BackgroundStack) -> Iterator[Mapping[tuple[str, bool], Future[CommandResult]]]:
    """Results of BAD_COMMANDS, with --json and without, four at a time."""
    with ThreadPoolExecutor(4) as pool:
        yield {
            (name, as_json): pool.submit(
                run, up.home, *bad.arguments, *(["--json"] if as_json else [])
            )
            for name, bad in BAD_COMMANDS.items()
            for as_json in (True, False)
        }


@pytest.mark.parametrize("name", BAD_COMMANDS)
def test_bad_command_prints_one_error(
    results: Mapping[tuple[str, bool], Future[CommandResult]], name: str
) -> None:
    bad = BAD_COMMANDS[name]
    result = results[name, True].result()
    result.assert_no_traceback()
    error = result.document()["error"]
    assert (result.code, error["code"]) == (bad.exit_code, bad.code)
    assert bad.message in error["message"]

    printed = results[name, False].result()
    printed.assert_no_traceback()
    assert printed.code == bad.exit_code
    lines = [line for line in (printed.out + printed.err).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert error["message"] in lines[0]


def test_search_for_unknown_owner_is_an_error(up: BackgroundStack, vestry: Vestry) -> None:
    with psycopg.connect(up.client["database_url"]) as conn:
        entry = Embedding(documents=[Document("Up betimes.")], source="diary")
        job = vestry.enqueue(conn, entry, owner="ann", privacy="private")
    vestry.wait(job, timeout=BULK_S)
    result = run(up.home, "search", "up betimes", "--owner", "unknown", "--json")
    result.assert_no_traceback()
    assert result.code == 2
    assert result.document()["error"]["code"] == "unknown_owner"
    with psycopg.connect(up.client["database_url"]) as conn:
        keys = conn.execute("SELECT count(*) FROM vestry.owner_keys WHERE owner = 'unknown'")
        assert keys.fetchone() == (0,), "a misspelt owner must not be created"


BAD_LINES = {
    2: (b'{"text": "broken', "invalid_input", "malformed JSON"),
    3: (b'{"text": ""}', "invalid_input", "text"),
    4: (b'{"id": "no text"}', "invalid_input", "text"),
    5: (b'{"text": 7}', "invalid_input", "text"),
    6: (b'["a list"]', "invalid_input", "not a JSON object"),
    7: (b'{"text": "a", "metadata": {"n": NaN}}', "invalid_input", "JSON"),
    8: (b'{"text": "nul \\u0000 inside"}', "invalid_input", "NUL"),
    9: (b'{"text": "lone \\ud800 surrogate"}', "invalid_input", "Unicode"),
    10: (b'{"text": "caf\xe9"}', "invalid_input", "not UTF-8"),
    11: (b'{"text": "a", "metadata": 3}', "invalid_input", "metadata"),
    12: (b'{"text": "again", "id": "first"}', "invalid_input", "id"),
    13: (b'{"text": "' + b"long " * 250_000 + b'"}', "invalid_input", "text"),
    15: (b'{"text": "vector echo!nan"}', "bad_vector", "vector"),
    16: (b'{"text": "vector echo!wrong-dimension"}', "bad_vector", "vector"),
    17: (b'{"text": "vector echo!bad-request"}', "bad_request", "input"),
}
GOOD_LINES = {
    1: b'{"text": "a first good entry", "id": "first"}',
    14: b'{"text": "a good entry in the middle", "id": "middle"}',
    18: b'{"text": "a last good entry", "id": "last"}',
}


def test_index_reports_each_bad_line_and_indexes_the_others(
    up: BackgroundStack, vestry: Vestry, tmp_path: Path
) -> None:
    lines = {n: line for n, (line, _, _) in BAD_LINES.items()} | GOOD_LINES
    file = tmp_path / "diary.jsonl"
    file.write_bytes(b"\n".join(lines[n] for n in sorted(lines)))
    options = ("--owner", "lines", "--privacy", "private", "--source", "diary")

    result = run(up.home, "index", str(file), *options, "--json")

    result.assert_no_traceback()
    assert result.code == 1
    document = result.document()
    assert document["failed"] == len(BAD_LINES)
    failures = {f["line"]: f for f in document["failures"]}
    assert len(document["failures"]) == len(failures), "a line was reported twice"
    assert {n: f["code"] for n, f in failures.items()} == {
        n: c for n, (_, c, _) in BAD_LINES.items()
    }
    for number, (_, _, message) in BAD_LINES.items():
        assert message in failures[number]["message"]
        assert failures[number]["file"] == str(file)
        assert f"{file}:{number}: " in result.err
    hits = vestry.search("good entry", owner="lines", privacy="private")
    assert {hit.document for hit in hits} == {"first", "middle", "last"}

    text_result = run(up.home, "index", str(file), *options)
    text_result.assert_no_traceback()
    assert text_result.code == 1
    assert "Traceback" not in text_result.out
    assert all(f"{file}:{number}: " in text_result.err for number in BAD_LINES)


def test_index_reports_utf_16_file_as_one_bad_line(up: BackgroundStack, tmp_path: Path) -> None:
    file = tmp_path / "utf16.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-16")
    result = run(up.home, *INDEX, str(file), "--json")
    result.assert_no_traceback()
    assert result.code == 1
    (failure,) = result.document()["failures"]
    assert (failure["line"], "UTF-16" in failure["message"]) == (1, True)
