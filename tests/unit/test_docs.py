"""The documents match the code: state diagram, settings, links, names of files and definitions."""

from __future__ import annotations

import ast
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
MAX_FILES_OF_A_JOB = 40
"""A reader must be able to follow one job through the code."""


def state_diagram() -> str:
    text = (ROOT / "docs" / "state_machine.md").read_text(encoding="utf-8")
    match = re.search(r"```mermaid\nstateDiagram-v2\n(.*?)```", text, re.DOTALL)
    assert match is not None, "docs/state_machine.md has no mermaid state diagram"
    return match.group(1)


def arrows() -> list[tuple[str, str]]:
    lines = [line.strip() for line in state_diagram().splitlines() if line.strip()]
    matches = [re.fullmatch(r"(\S+) --> ([^\s:]+)(?:: .+)?", line) for line in lines]
    invalid = [line for line, match in zip(lines, matches, strict=True) if match is None]
    assert not invalid, f"not an arrow: {invalid}"
    return [(match.group(1), match.group(2)) for match in matches if match is not None]


def job_path() -> list[tuple[int, str, str]]:
    """Number, file and definition of each entry of "The way of one job"."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("\n## The way of one job\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if re.match(r"\d", line)]
    matches = [re.match(r"(\d+)\. `([\w./]+): ([\w.]+)`", line) for line in lines]
    invalid = [line for line, match in zip(lines, matches, strict=True) if match is None]
    assert not invalid, f"not an entry `file: definition`: {invalid}"
    return [(int(m.group(1)), m.group(2), m.group(3)) for m in matches if m is not None]


def is_defined(file: str, name: str) -> bool:
    """Whether a Python file defines a class, function or method, or a SQL file a function or query."""
    path = ROOT / file
    if not path.is_file():
        return False
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".sql":
        definition = rf"^(?:CREATE (?:OR REPLACE )?FUNCTION|-- name:) {re.escape(name)}\b"
        return re.search(definition, source, re.MULTILINE) is not None
    scope: list[ast.stmt] = ast.parse(source).body
    for part in name.split("."):
        definitions = [
            node
            for node in scope
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
            and node.name == part
        ]
        if not definitions:
            return False
        scope = definitions[0].body
    return True


def test_every_state_arrow_is_drawn_once() -> None:
    drawn = arrows()
    assert len(drawn) == len(set(drawn))


def test_state_diagram_equals_transition_table() -> None:
    transitions = {pair for pair in arrows() if START_OR_END not in pair}
    assert transitions == {(str(before), str(after)) for before, after in TRANSITIONS}


def test_state_diagram_ends_in_terminal_states() -> None:
    ends = {before for before, after in arrows() if after == START_OR_END}
    assert ends == {str(state) for state in TERMINAL}


def test_every_state_is_explained() -> None:
    text = (ROOT / "docs" / "state_machine.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert explained == {str(state) for state in State}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text)
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(
        r"`((?:vestry|tasks|inference|models|workers|migrations|tests|tools|benchmarks|samples|docs)"
        r"/[\w./-]*)`",
        text,
    )
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_lanes_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(?:private|shareable)\.(?:interactive|bulk)\.\w+", text))
    assert named <= set(LANES)


def test_settings_table_equals_settings() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `VESTRY_")]
    listed = [name for row in rows for name in re.findall(r"`(VESTRY_\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(f"VESTRY_{name.upper()}" for name in Settings.model_fields)


def test_packages_table_lists_every_package() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^\| `([\w/]+)/` \|", text, re.MULTILINE))
    packages = {
        str(init.parent.relative_to(ROOT))
        for top in ("vestry", "models", "inference", "tasks", "workers")
        for init in (ROOT / top).rglob("__init__.py")
    }
    nested = {name for name in packages if name.startswith("vestry/cli/")}
    assert packages - nested <= listed


def test_job_path_is_numbered_in_order() -> None:
    assert [number for number, _, _ in job_path()] == list(range(1, len(job_path()) + 1))


def test_job_path_names_existing_definitions() -> None:
    missing = [f"{file}: {name}" for _, file, name in job_path() if not is_defined(file, name)]
    assert not missing


def test_job_path_passes_through_few_files() -> None:
    assert 0 < len({file for _, file, _ in job_path()}) <= MAX_FILES_OF_A_JOB


def test_decisions_are_numbered_in_order() -> None:
    names = sorted(path.name for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert [name[:4] for name in names] == [f"{n:04}" for n in range(1, len(names) + 1)]
    for name in names:
        title = (ROOT / "docs" / "adr" / name).read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {int(name[:4])}. ")


def test_readme_table_of_models_equals_catalogue() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert markdown(load()) in readme, "python -m inference.catalogue.table prints it"
