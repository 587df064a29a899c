"""`vestry submit classification` and `rerank`: what is asked for, and what a person is shown."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vestry.cli import main
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.results import show_classification, show_rerank
from vestry.cli.submit import classification, rerank
from vestry.cli.submit.classification import labels_of
from vestry.cli.submit.rerank import lines_of
from vestry.jobs.classification import Label

WHO = ["--owner", "o", "--privacy", "private"]


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What would have been enqueued, and how."""
    asked: list[Any] = []
    for module in (classification, rerank):
        monkeypatch.setattr(module, "submit", lambda job, how, _out: asked.extend((job, how)))
    return asked


def shown(
    show: Callable[[Console, Mapping[str, Any]], None], result: Mapping[str, Any]
) -> list[str]:
    page = io.StringIO()
    show(Console(file=page, width=100), result)
    return [" ".join(line.split()) for line in page.getvalue().splitlines() if line.strip()]


def test_labels_are_given_with_descriptions_and_examples(submitted: list[Any]) -> None:
    command = [
        "submit", "classification", "--text", "a text", "--label", "law = rules = commandments",
        "--label", "poetry", "--example", "poetry=The LORD is my shepherd", "--example",
        "poetry=Praise him", "--multi", "--threshold", "0.4", "--task", "topic", *WHO,
    ]  # fmt: skip
    assert main(command) == ExitCode.OK
    job, how = submitted
    assert job.labels == (
        Label("law", "rules = commandments"),
        Label("poetry", None, ["The LORD is my shepherd", "Praise him"]),
    )
    assert (job.text, job.multi, job.threshold) == ("a text", True, 0.4)
    assert (how.task, how.owner, how.privacy) == ("topic", "o", "private")


def test_an_example_is_of_a_label_given() -> None:
    for wrong in ("law", "gospel=In those days"):
        with pytest.raises(CommandError, match="--example wants NAME=TEXT"):
            labels_of(["law"], [wrong])


def test_tasks_with_labels_of_their_own_need_none(submitted: list[Any]) -> None:
    command = ["submit", "classification", "--text", "Ps 23", "--task", "passage-reference", *WHO]
    assert main(command) == ExitCode.OK
    assert submitted[0].labels == ()


def test_passages_are_given_one_by_one_or_as_lines(submitted: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "passages.txt"
    file.write_text("\ufeffsecond\n\n  third \n", encoding="utf-8")
    command = ["submit", "rerank", "--query", "q", "--passage", "first", "--file", str(file)]
    assert main([*command, "-n", "2", *WHO]) == ExitCode.OK
    job, _ = submitted
    assert (job.query, job.passages, job.limit) == ("q", ("first", "second", "third"), 2)


def test_files_that_hold_no_passages_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CommandError, match="cannot be read"):
        lines_of(tmp_path / "nothing")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CommandError, match="not UTF-8"):
        lines_of(binary)
    assert main(["submit", "rerank", "--query", "q", *WHO]) == ExitCode.USAGE
    assert "--passage or --file" in capsys.readouterr().err


def test_a_label_is_shown_before_what_else_was_likely() -> None:
    scores = [{"label": name, "score": 0.9 - n / 10} for n, name in enumerate("abcdefgh")]
    lines = shown(show_classification, {"labels": scores[:1], "abstained": False, "scores": scores})
    assert lines[1:3] == ["a 0.9", "b 0.8"]
    assert len(lines) == 1 + 1 + 5


def test_abstaining_is_said_and_controls_are_not_printed() -> None:
    scores = [{"label": "a\x1b[2J", "score": 0.3}]
    lines = shown(show_classification, {"labels": [], "abstained": True, "scores": scores})
    assert lines[0] == "no label: none reached the threshold"
    assert "\x1b" not in "".join(lines)
    nothing = shown(show_classification, {"labels": [], "abstained": True, "scores": []})
    assert nothing == ["no label: none reached the threshold"]


def test_a_reference_is_shown_in_its_usual_form() -> None:
    valid = [{"label": "valid", "score": 1.0}]
    lines = shown(
        show_classification,
        {"labels": valid, "abstained": False, "scores": valid, "normalised": "Psalm 23"},
    )
    assert lines[-1] == "usual form: Psalm 23"


def test_a_ranking_is_shown_best_first() -> None:
    lines = shown(
        show_rerank, {"ranking": [{"index": 2, "score": 8.5}, {"index": 0, "score": -1.25}]}
    )
    assert lines[1:] == ["1 2 8.5000", "2 0 -1.2500"]
