"""`vestry.cli.results`: each kind's result as text."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from rich.console import Console

from vestry.cli.output import Output
from vestry.cli.results import (
    Outcome,
    print_classification,
    print_ocr,
    print_outcome,
    print_ranking,
)
from vestry.jobs.ocr import OcrPage, OcrResult


def printed(
    print_kind: Callable[[Console, Mapping[str, Any]], None], result: Mapping[str, Any]
) -> list[str]:
    """The lines that are not blank, with single spaces."""
    file = io.StringIO()
    print_kind(Console(file=file, width=100), result)
    return [" ".join(line.split()) for line in file.getvalue().splitlines() if line.strip()]


def printed_pages(*pages: OcrPage) -> str:
    file = io.StringIO()
    console = Console(file=file, width=100, highlight=False)
    print_ocr(console, OcrResult.of(pages, len(pages)).to_json())
    return file.getvalue()


def test_classification_prints_assigned_label_before_rejected_ones() -> None:
    scores = [{"label": name, "score": 0.9 - n / 10} for n, name in enumerate("abcdefgh")]
    lines = printed(
        print_classification, {"labels": scores[:1], "abstained": False, "scores": scores}
    )
    assert lines[1:3] == ["a 0.9", "b 0.8"]
    assert len(lines) == 1 + 1 + 5


def test_classification_prints_abstention_and_no_control_characters() -> None:
    scores = [{"label": "a\x1b[2J", "score": 0.3}]
    lines = printed(print_classification, {"labels": [], "abstained": True, "scores": scores})
    assert lines[0] == "no label: none reached the threshold"
    assert "\x1b" not in "".join(lines)
    without_scores = printed(print_classification, {"labels": [], "abstained": True, "scores": []})
    assert without_scores == ["no label: none reached the threshold"]


def test_classification_prints_usual_form_of_a_reference() -> None:
    valid = [{"label": "valid", "score": 1.0}]
    lines = printed(
        print_classification,
        {"labels": valid, "abstained": False, "scores": valid, "normalised": "Psalm 23"},
    )
    assert lines[-1] == "usual form: Psalm 23"


def test_ranking_is_printed_best_first() -> None:
    lines = printed(
        print_ranking, {"ranking": [{"index": 2, "score": 8.5}, {"index": 0, "score": -1.25}]}
    )
    assert lines[1:] == ["1 2 8.5000", "2 0 -1.2500"]


def test_single_ocr_page_is_printed_as_its_text() -> None:
    text = printed_pages(
        OcrPage(1, "Up betimes\x1b[31m\n\n[bold]and[/bold] out", 0.957, source="ocr", rotation=90)
    )
    assert text == "image, confidence 96%, rotated 90°\nUp betimes [31m\n\n[bold]and[/bold] out\n"
    assert "No text was found." in printed_pages(OcrPage(1, "", source="ocr"))


def test_several_ocr_pages_are_printed_as_table_and_text() -> None:
    text = printed_pages(
        OcrPage(1, "first page", source="text-layer"),
        OcrPage(2, "", error=("damaged_page", "the page cannot be decoded")),
        OcrPage(3, "third", 0.8, source="ocr", skew=-2.1),
    )
    lines = text.splitlines()
    assert lines[0].split() == ["page", "read", "from", "confidence", "words", "rotated", "error"]
    assert lines[1].split() == ["1", "text", "layer", "-", "2", "-", "-"]
    assert "the page cannot be decoded" in lines[2]
    assert lines[3].split() == ["3", "image", "80%", "1", "-2.1°", "-"]
    assert "1 of 3 pages could not be read." in text
    assert text.endswith("first page\n\nthird\n")


def test_outcome_is_printed_by_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    result = OcrResult.of((OcrPage(1, "Up betimes", 0.9, source="ocr"),), 1).to_json()
    print_outcome(Output(as_json=False), Outcome("id", "ocr", "succeeded", result, None))
    assert "Up betimes" in capsys.readouterr().out
