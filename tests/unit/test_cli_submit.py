"""`vestry submit classification`, `rerank` and `ocr`: the job that is built, and refused input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from vestry.cli import main
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.submit import classification, rerank
from vestry.cli.submit.classification import parse_labels
from vestry.cli.submit.ocr import parse_pages
from vestry.cli.submit.rerank import read_passages
from vestry.errors import InvalidInput
from vestry.jobs.classification import Label

PAGE = Path(__file__).parents[2] / "samples" / "phototest.tif"
OWNER = ["--owner", "o", "--privacy", "private"]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The job and the submission that a command would have enqueued."""
    calls: list[Any] = []
    for module in (classification, rerank):
        monkeypatch.setattr(
            module, "submit", lambda job, submission, _out: calls.extend((job, submission))
        )
    return calls


def submit_ocr(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """Exit code and error of a `submit ocr` that is refused."""
    code = main(["submit", "ocr", *arguments, *OWNER, "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    return code, error


def test_classification_takes_labels_with_descriptions_and_examples(submitted: list[Any]) -> None:
    command = [
        "submit", "classification", "--text", "a text", "--label", "law = rules = commandments",
        "--label", "poetry", "--example", "poetry=The LORD is my shepherd", "--example",
        "poetry=Praise him", "--multi", "--threshold", "0.4", "--task", "topic", *OWNER,
    ]  # fmt: skip
    assert main(command) == ExitCode.OK
    job, submission = submitted
    assert job.labels == (
        Label("law", "rules = commandments"),
        Label("poetry", None, ["The LORD is my shepherd", "Praise him"]),
    )
    assert (job.text, job.multi, job.threshold) == ("a text", True, 0.4)
    assert (submission.task, submission.owner, submission.privacy) == ("topic", "o", "private")


def test_classification_refuses_example_without_its_label() -> None:
    for example in ("law", "gospel=In those days"):
        with pytest.raises(CommandError, match="--example takes NAME=TEXT"):
            parse_labels(["law"], [example])


def test_classification_needs_no_labels_for_tasks_with_their_own(submitted: list[Any]) -> None:
    command = ["submit", "classification", "--text", "Ps 23", "--task", "passage-reference", *OWNER]
    assert main(command) == ExitCode.OK
    assert submitted[0].labels == ()


def test_rerank_takes_passages_as_options_and_as_lines_of_a_file(
    submitted: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("\ufeffsecond\n\n  third \n", encoding="utf-8")
    command = ["submit", "rerank", "--query", "q", "--passage", "first", "--file", str(file)]
    assert main([*command, "-n", "2", *OWNER]) == ExitCode.OK
    job, _ = submitted
    assert (job.query, job.passages, job.limit) == ("q", ("first", "second", "third"), 2)


def test_rerank_refuses_unreadable_files_and_no_passages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match="cannot be read"):
        read_passages(tmp_path / "nothing")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CommandError, match="not UTF-8"):
        read_passages(binary)
    assert main(["submit", "rerank", "--query", "q", *OWNER]) == ExitCode.USAGE
    assert "--passage or --file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["/nowhere/page.tif"], "/nowhere/page.tif: does not exist"),
        ([str(PAGE.parent)], "must be a file, not a directory"),
        ([str(PAGE.with_name("README.md"))], "must be a PNG, JPEG, TIFF, WebP or PDF file"),
        (["/dev/null"], "must be a regular file"),
        ([str(PAGE), "--pages", "7-3"], "pages: must be"),
        ([str(PAGE), "--pages", "one"], "such as 3 or 3-7"),
        ([str(PAGE), "--dpi", "7"], "dpi: must be"),
        ([str(PAGE), "--language", "../eng"], "languages[0]"),
    ],
)
def test_ocr_refuses_invalid_input_before_enqueue(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = submit_ocr(*arguments, capsys=capsys)
    assert code == ExitCode.USAGE
    assert error["code"] == "invalid_input"
    assert message in error["message"]


def test_ocr_refuses_too_large_file_with_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "huge.pdf"
    with file.open("wb") as stream:
        stream.truncate(2**33)
    code, error = submit_ocr(str(file), capsys=capsys)
    assert code == ExitCode.USAGE
    assert "8589934592 bytes; at most 67108864" in error["message"]


def test_ocr_reads_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no page")))
    _, error = submit_ocr("-", capsys=capsys)
    assert error["message"].startswith("stdin: must be a PNG")


def test_ocr_parses_pages() -> None:
    assert parse_pages(None) is None
    assert parse_pages("3") == (3, 3)
    assert parse_pages(" 3-12 ") == (3, 12)
    with pytest.raises(InvalidInput):
        parse_pages("3-")
