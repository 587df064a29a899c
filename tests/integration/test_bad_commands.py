"""Bad command lines and files get one clear error, and spoil nothing beside it: the real command."""

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
NOBODY = "00000000-0000-7000-8000-000000000000"
LONG = "x" * 3000
"""More than the model reads, and still an argument."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    def document(self) -> dict[str, Any]:
        """With --json: the one document."""
        document: dict[str, Any] = json.loads(self.out)
        return document

    def is_tidy(self) -> None:
        assert "Traceback" not in self.out + self.err
        assert 'File "' not in self.out + self.err


@dataclass(frozen=True, slots=True)
class Wrong:
    """A command line that cannot be done, and the one error it gets."""

    arguments: tuple[str | bytes, ...]
    code: str
    says: str
    exit_code: int = 2


SUBMIT = ("submit", "embedding", "--owner", "ann", "--privacy", "private")
INDEX = ("index", "--owner", "ann", "--privacy", "private", "--source", "diary")
WRONG = {
    "empty text": Wrong((*SUBMIT, "--text", "fine", "--text", ""), "invalid_input", "texts[1]"),
    "blank text": Wrong((*SUBMIT, "--text", " \t"), "invalid_input", "texts[0]"),
    "wrong encoding": Wrong((*SUBMIT, "--text", b"caf\xe9"), "invalid_input", "texts[0]"),
    "oversize text": Wrong((*SUBMIT, "--wait", "--text", LONG), "too_long", "text 0", 1),
    "unknown model": Wrong(
        (*SUBMIT, "--wait", "--text", "a", "--model", "none"), "unknown_model", "echo", 1
    ),
    "bad vectors": Wrong((*SUBMIT, "--wait", "--text", "echo!nan"), "bad_vector", "text 0", 1),
    "missing privacy": Wrong(
        ("submit", "embedding", "--owner", "ann", "--text", "a"), "usage", "--privacy"
    ),
    "unknown privacy": Wrong(
        ("submit", "embedding", "--owner", "ann", "--text", "a", "--privacy", "public"),
        "usage", "--privacy",
    ),
    "missing owner": Wrong(
        ("submit", "embedding", "--privacy", "private", "--text", "a"), "usage", "--owner"
    ),
    "empty owner": Wrong(
        ("submit", "embedding", "--privacy", "private", "--owner", "", "--text", "a"),
        "invalid_input", "owner",
    ),
    "unknown job, status": Wrong(("status", NOBODY), "unknown_job", "job"),
    "unknown job, wait": Wrong(("wait", NOBODY), "unknown_job", "job"),
    "unknown job, result": Wrong(("result", NOBODY), "unknown_job", "job"),
    "unknown job, cancel": Wrong(("cancel", NOBODY), "unknown_job", "job"),
    "no job's id": Wrong(("status", "tomorrow"), "invalid_input", "job"),
    "unknown lane": Wrong(("lanes", "pause", "private.bulk.cloud"), "unknown_lane", "lane"),
    "unknown space": Wrong(
        ("search", "a", "--owner", "ann", "--space", "none"), "unknown_space", "space"
    ),
    "empty query": Wrong(("search", "", "--owner", "ann"), "invalid_input", "query"),
    "bad source": Wrong(
        ("index", "f", "--owner", "ann", "--privacy", "private", "--source", "My Diary"),
        "invalid_input", "source",
    ),
    "missing file": Wrong((*INDEX, "nowhere.jsonl"), "invalid_input", "nowhere.jsonl"),
    "a directory": Wrong((*INDEX, "/"), "invalid_input", "/"),
}  # fmt: skip


def run(home: Path, *arguments: str | bytes) -> Answer:
    environment = {"VESTRY_HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    done = subprocess.run(
        [VESTRY, *arguments], env=environment, capture_output=True, timeout=120, check=False
    )
    return Answer(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture(scope="module")
def answers(up: BackgroundStack) -> Iterator[Mapping[tuple[str, bool], Future[Answer]]]:
    """Every command of WRONG, with --json and without, a few at a time."""
    with ThreadPoolExecutor(4) as pool:
        yield {
            (name, as_json): pool.submit(
                run, up.home, *wrong.arguments, *(["--json"] if as_json else [])
            )
            for name, wrong in WRONG.items()
            for as_json in (True, False)
        }


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_command_gets_one_error(
    answers: Mapping[tuple[str, bool], Future[Answer]], name: str
) -> None:
    wrong = WRONG[name]
    told = answers[name, True].result()
    told.is_tidy()
    error = told.document()["error"]
    assert (told.code, error["code"]) == (wrong.exit_code, wrong.code)
    assert wrong.says in error["message"]

    shown = answers[name, False].result()
    shown.is_tidy()
    assert shown.code == wrong.exit_code
    lines = [line for line in (shown.out + shown.err).splitlines() if line.strip()]
    assert len(lines) == 1, lines
    assert error["message"] in lines[0]


def test_a_search_for_an_unknown_owner_says_so(up: BackgroundStack, vestry: Vestry) -> None:
    with psycopg.connect(up.client["database_url"]) as conn:
        entry = Embedding(documents=[Document("Up betimes.")], source="diary")
        job = vestry.enqueue(conn, entry, owner="ann", privacy="private")
    vestry.wait(job, timeout=BULK_S)
    told = run(up.home, "search", "up betimes", "--owner", "nobody", "--json")
    told.is_tidy()
    assert told.code == 2
    assert told.document()["error"]["code"] == "unknown_owner"
    with psycopg.connect(up.client["database_url"]) as conn:
        keys = conn.execute("SELECT count(*) FROM vestry.owner_keys WHERE owner = 'nobody'")
        assert keys.fetchone() == (0,), "a slip of the pen must not make an owner"


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


def test_each_bad_line_of_a_file_is_named_and_the_others_are_indexed(
    up: BackgroundStack, vestry: Vestry, tmp_path: Path
) -> None:
    lines = {n: line for n, (line, _, _) in BAD_LINES.items()} | GOOD_LINES
    file = tmp_path / "diary.jsonl"
    file.write_bytes(b"\n".join(lines[n] for n in sorted(lines)))
    options = ("--owner", "lines", "--privacy", "private", "--source", "diary")

    told = run(up.home, "index", str(file), *options, "--json")

    told.is_tidy()
    assert told.code == 1
    document = told.document()
    assert document["failed"] == len(BAD_LINES)
    failures = {f["line"]: f for f in document["failures"]}
    assert len(document["failures"]) == len(failures), "a line was named twice"
    assert {n: f["code"] for n, f in failures.items()} == {
        n: c for n, (_, c, _) in BAD_LINES.items()
    }
    for number, (_, _, says) in BAD_LINES.items():
        assert says in failures[number]["message"]
        assert failures[number]["file"] == str(file)
        assert f"{file}:{number}: " in told.err
    hits = vestry.search("good entry", owner="lines", privacy="private")
    assert {hit.document for hit in hits} == {"first", "middle", "last"}

    again = run(up.home, "index", str(file), *options)
    again.is_tidy()
    assert again.code == 1
    assert "Traceback" not in again.out
    assert all(f"{file}:{number}: " in again.err for number in BAD_LINES)


def test_a_file_in_another_encoding_is_one_bad_line(up: BackgroundStack, tmp_path: Path) -> None:
    file = tmp_path / "utf16.jsonl"
    file.write_text('{"text": "a"}\n{"text": "b"}\n', encoding="utf-16")
    told = run(up.home, *INDEX, str(file), "--json")
    told.is_tidy()
    assert told.code == 1
    (failure,) = told.document()["failures"]
    assert (failure["line"], "UTF-16" in failure["message"]) == (1, True)
