"""The documents say what the code does: the drawing of the states, links, and names of files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inference.catalogue.loader import load
from inference.catalogue.table import markdown
from models.states import TERMINAL, TRANSITIONS, State
from vestry.lanes import LANES
from workers.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *ROOT.glob("samples/*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/adr/*.md"),
    ]
)
START_OR_END = "[*]"


def drawing() -> str:
    text = (ROOT / "docs" / "state_machine.md").read_text(encoding="utf-8")
    found = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    assert found is not None, "docs/state_machine.md holds no mermaid state diagram"
    return found.group(1)


def arrows() -> list[tuple[str, str]]:
    lines = [line.strip() for line in drawing().splitlines() if line.strip()]
    parsed = [re.fullmatch(r"(\S+) --> ([^\s:]+)(?:: .+)?", line) for line in lines]
    unread = [line for line, match in zip(lines, parsed, strict=True) if match is None]
    assert not unread, f"not an arrow: {unread}"
    return [(match.group(1), match.group(2)) for match in parsed if match is not None]


def test_every_arrow_is_drawn_once() -> None:
    drawn = arrows()
    assert len(drawn) == len(set(drawn))


def test_the_drawing_is_the_transition_table() -> None:
    moves = {pair for pair in arrows() if START_OR_END not in pair}
    assert moves == {(str(before), str(after)) for before, after in TRANSITIONS}


def test_the_drawing_ends_where_the_table_ends() -> None:
    ends = {before for before, after in arrows() if after == START_OR_END}
    assert ends == {str(state) for state in TERMINAL}


def test_every_state_is_explained() -> None:
    text = (ROOT / "docs" / "state_machine.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert explained == {str(state) for state in State}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_within_the_project_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_a_document_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:vestry|tasks|inference|models|workers|migrations|tests|samples|docs)/[\w./-]*)`",
        text,
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_lanes_named_in_a_document_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:private|shareable)\.(?:interactive|bulk)\.\w+", text))
    assert named <= set(LANES)


def test_every_setting_is_listed_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `VESTRY_")]
    listed = [name for row in rows for name in re.findall(r"`(VESTRY_\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(f"VESTRY_{name.upper()}" for name in Settings.model_fields)


def test_every_decision_is_numbered_in_order() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert [name[:4] for name in names] == [f"{n:04}" for n in range(1, len(names) + 1)]
    for name in names:
        title = (ROOT / "docs" / "adr" / name).read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {int(name[:4])}. ")


def test_the_readme_s_table_of_models_is_the_catalogue() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert markdown(load()) in readme, "python -m inference.catalogue.table prints it"
