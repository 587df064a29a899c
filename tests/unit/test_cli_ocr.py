"""`vestry submit ocr`: what is refused before anything is enqueued, and how pages are shown."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vestry.cli import main
from vestry.cli.errors import ExitCode
from vestry.cli.output import Output
from vestry.cli.results import Outcome, answer, show_ocr
from vestry.cli.submit.ocr import page_range
from vestry.errors import InvalidInput
from vestry.jobs.ocr import OcrPage, OcrResult

PAGE = Path(__file__).parents[2] / "samples" / "phototest.tif"


def submit(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["submit", "ocr", *arguments, "--owner", "o", "--privacy", "private", "--json"])
    told = json.loads(capsys.readouterr().out)["error"]
    return code, told


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["/nowhere/page.tif"], "/nowhere/page.tif: does not exist"),
        ([str(PAGE.parent)], "is a directory"),
        ([str(PAGE.with_name("README.md"))], "is not a PNG, JPEG, TIFF, WebP or PDF file"),
        (["/dev/null"], "is not a regular file"),
        ([str(PAGE), "--pages", "7-3"], "pages: must be"),
        ([str(PAGE), "--pages", "one"], "such as 3 or 3-7"),
        ([str(PAGE), "--dpi", "7"], "dpi: must be"),
        ([str(PAGE), "--language", "../eng"], "languages[0]"),
    ],
)
def test_what_cannot_be_read_is_told_at_once(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, error = submit(*arguments, capsys=capsys)
    assert code == ExitCode.USAGE
    assert error["code"] == "invalid_input"
    assert told in error["message"]


def test_a_file_too_large_is_told_with_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "huge.pdf"
    with file.open("wb") as stream:
        stream.truncate(2**33)
    code, error = submit(str(file), capsys=capsys)
    assert code == ExitCode.USAGE
    assert "8589934592 bytes; at most 67108864" in error["message"]


def test_a_file_comes_through_a_pipe_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"no page")))
    _, error = submit("-", capsys=capsys)
    assert error["message"].startswith("stdin: is not a PNG")


def test_a_range_is_read() -> None:
    assert page_range(None) is None
    assert page_range("3") == (3, 3)
    assert page_range(" 3-12 ") == (3, 12)
    with pytest.raises(InvalidInput):
        page_range("3-")


def shown(*pages: OcrPage) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False)
    show_ocr(console, OcrResult.of(pages, len(pages)).to_json())
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_page_is_shown_as_its_text() -> None:
    told = shown(
        OcrPage(1, "Up betimes\x1b[31m\n\n[bold]and[/bold] out", 0.957, source="ocr", rotation=90)
    )
    assert told == "image, confidence 96%, turned 90°\nUp betimes [31m\n\n[bold]and[/bold] out\n"
    assert "There is no text on it." in shown(OcrPage(1, "", source="ocr"))


def test_several_pages_are_shown_as_a_table_and_their_text() -> None:
    damaged = ("damaged_page", "the page cannot be decoded")
    told = shown(
        OcrPage(1, "first page", source="text-layer"),
        OcrPage(2, "", error=damaged),
        OcrPage(3, "third", 0.8, source="ocr", skew=-2.1),
    )
    lines = told.splitlines()
    assert lines[0].split() == ["page", "read", "from", "confidence", "words", "turned", "error"]
    assert lines[1].split() == ["1", "text", "layer", "-", "2", "-", "-"]
    assert "the page cannot be decoded" in lines[2]
    assert lines[3].split() == ["3", "image", "80%", "1", "-2.1°", "-"]
    assert "1 of 3 pages could not be read." in told
    assert told.endswith("first page\n\nthird\n")


def test_an_outcome_of_the_kind_is_shown_so(capsys: pytest.CaptureFixture[str]) -> None:
    result = OcrResult.of((OcrPage(1, "Up betimes", 0.9, source="ocr"),), 1).to_json()
    answer(Output(as_json=False), Outcome("id", "ocr", "succeeded", result, None))
    assert "Up betimes" in capsys.readouterr().out
