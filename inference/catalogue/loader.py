"""Reads the catalogue's file: one YAML document, whose faults are told with file and line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import yaml
from pydantic import ValidationError

from inference.catalogue.schema import Catalogue, ModelEntry, Rule, When
from vestry.lanes import Privacy

SHIPPED: Final = Path(__file__).with_name("catalogue.yaml")
_REMOTE = re.compile(r".*[-:]cloud")
"""How Ollama names models that it has run by somebody else."""
_Place = tuple[int | str, ...]
_Fault = tuple[_Place, str]


class CatalogueError(Exception):
    """The catalogue cannot be used; the message names file and line."""


def load(path: Path | None = None) -> Catalogue:
    """Read and check a catalogue.

    Args:
        path: its file; None for the one that is shipped.

    Raises:
        CatalogueError: unknown keys, impossible combinations, or no YAML.
    """
    file = path or SHIPPED
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{file}: cannot be read ({type(error).__name__})") from None
    return parse(text, str(file))


def parse(text: str, file: str = "catalogue") -> Catalogue:
    """Check a catalogue's text; see `load`."""
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            # They can make a document endless, and nobody needs them here.
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise CatalogueError(f"{file}:{line}: YAML's aliases (*) cannot be used here")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise CatalogueError(f"{where}: {problem}") from None
    places = _Places(file, root)
    places.refuse_repeated_keys()
    try:
        made = Catalogue.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise places.error(first["loc"], what) from None
    for place, problem in _contradictions(made):
        raise places.error(place, problem)
    return made


def _contradictions(made: Catalogue) -> Iterator[_Fault]:
    """What pydantic cannot see in one field: the place of each fault, and what is wrong."""
    for group in ("backends", "models", "tasks"):
        seen: set[str] = set()
        for place, entry in enumerate(getattr(made, group)):
            if entry.name in seen:
                yield (group, place, "name"), f"{entry.name} is declared twice"
            seen.add(entry.name)
    for place, model in enumerate(made.models):
        for field, problem in _faults_of_model(made, model):
            yield ("models", place, field), problem
    if not made.policy:
        yield ("policy",), "there is no rule"
    for place, rule in enumerate(made.policy):
        for path, problem in _faults_of_rule(made, rule):
            yield ("policy", place, *path), problem
    if made.policy and made.policy[-1].when != When():
        yield ("policy", len(made.policy) - 1), "the last rule must match everything: no `when`"


def _faults_of_model(made: Catalogue, model: ModelEntry) -> Iterator[tuple[str, str]]:
    locality = {entry.name: entry.locality for entry in made.backends}.get(model.backend)
    if locality is None:
        yield "backend", f"there is no backend {model.backend}"
    tasks = set(model.tasks) if isinstance(model.tasks, tuple) else set()
    if unknown := tasks - {entry.name for entry in made.tasks}:
        yield "tasks", f"there is no task {min(unknown)}"
    if "embedding" in model.kinds and model.dimension is None:
        yield "kinds", "an embedding model needs its dimension"
    if "ocr" in model.kinds and locality == "cloud":
        yield "kinds", "no lane leads from OCR to a cloud"
    if locality == "local" and _REMOTE.fullmatch(model.served_name):
        field = "served_as" if model.served_as else "name"
        yield field, "a model that its server has run elsewhere is not local"


def _faults_of_rule(made: Catalogue, rule: Rule) -> Iterator[_Fault]:
    if "cloud" in rule.prefer and Privacy.PRIVATE in rule.when.privacy:
        yield ("prefer",), "private work never goes to a cloud"
    if len(set(rule.prefer)) < len(rule.prefer):
        yield ("prefer",), "a locality is named twice"
    if unknown := set(rule.when.task) - {entry.name for entry in made.tasks}:
        yield ("when", "task"), f"there is no task {min(unknown)}"


class _Places:
    """Where in a file the parts of a document stand."""

    def __init__(self, file: str, root: yaml.Node | None) -> None:
        self._file = file
        self._root = root

    def error(self, path: Sequence[int | str], problem: str) -> CatalogueError:
        """An error at the deepest part of a path that there is."""
        node, told = self._root, list[str]()
        for step in path:
            found = _child(node, step)
            if found is None:
                if isinstance(step, str) and not _is_internal(step):
                    told.append(step)
                continue
            node = found
            told.append(str(step) if isinstance(step, str) else f"[{step}]")
        line = 1 if node is None else node.start_mark.line + 1
        name = ".".join(told).replace(".[", "[")
        return CatalogueError(f"{self._file}:{line}: {name or 'catalogue'}: {problem}")

    def refuse_repeated_keys(self) -> None:
        """YAML lets the last of two equal keys win, which nobody wants."""
        waiting = [self._root]
        while waiting:
            node = waiting.pop()
            if isinstance(node, yaml.SequenceNode):
                waiting += node.value
            if isinstance(node, yaml.MappingNode):
                seen: set[str] = set()
                for key, value in node.value:
                    if not isinstance(key, yaml.ScalarNode):
                        continue
                    if key.value in seen:
                        line = key.start_mark.line + 1
                        raise CatalogueError(f"{self._file}:{line}: {key.value} stands twice")
                    seen.add(key.value)
                    waiting.append(value)


def _child(node: yaml.Node | None, step: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    return None


def _is_internal(step: str) -> bool:
    """Pydantic puts the branches of a union into a path: `literal['…']`, `tuple[…]`."""
    return "[" in step
