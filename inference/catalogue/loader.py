"""Reads the catalogue's file, one YAML document; errors name file and line."""

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
"""Ollama's names of models that run on remote machines."""
_Path = tuple[int | str, ...]
_Problem = tuple[_Path, str]


class CatalogueError(Exception):
    """The catalogue cannot be used; the message names file and line."""


def load(path: Path | None = None) -> Catalogue:
    """Read and check a catalogue.

    Args:
        path: its file; None for the shipped one.

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
            # A few aliases can expand to a huge document.
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise CatalogueError(
                    f"{file}:{line}: YAML aliases (*) are not allowed; repeat the value"
                )
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark is not None else file
        problem = getattr(error, "problem", None) or "it is not YAML"
        raise CatalogueError(f"{where}: {problem}") from None
    source = _Source(file, root)
    source.refuse_repeated_keys()
    try:
        catalogue = Catalogue.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        problem = "unknown key" if first["type"] == "extra_forbidden" else first["msg"]
        raise source.error(first["loc"], problem) from None
    for path, problem in _contradictions(catalogue):
        raise source.error(path, problem)
    return catalogue


def _contradictions(catalogue: Catalogue) -> Iterator[_Problem]:
    """Problems across several fields: the path of each, and a message."""
    for group in ("backends", "models", "tasks"):
        seen: set[str] = set()
        for index, entry in enumerate(getattr(catalogue, group)):
            if entry.name in seen:
                yield (group, index, "name"), f"{entry.name} is declared twice"
            seen.add(entry.name)
    for index, model in enumerate(catalogue.models):
        for field, problem in _problems_of_model(catalogue, model):
            yield ("models", index, field), problem
    if not catalogue.policy:
        yield ("policy",), "there is no rule"
    for index, rule in enumerate(catalogue.policy):
        for path, problem in _problems_of_rule(catalogue, rule):
            yield ("policy", index, *path), problem
    if catalogue.policy and catalogue.policy[-1].when != When():
        yield (
            ("policy", len(catalogue.policy) - 1),
            "the last rule must match everything: no `when`",
        )


def _problems_of_model(catalogue: Catalogue, model: ModelEntry) -> Iterator[tuple[str, str]]:
    locality = {entry.name: entry.locality for entry in catalogue.backends}.get(model.backend)
    if locality is None:
        yield "backend", f"there is no backend {model.backend}"
    tasks = set(model.tasks) if isinstance(model.tasks, tuple) else set()
    if unknown := tasks - {entry.name for entry in catalogue.tasks}:
        yield "tasks", f"there is no task {min(unknown)}"
    if "embedding" in model.kinds and model.dimension is None:
        yield "kinds", "an embedding model needs its dimension"
    if "ocr" in model.kinds and locality == "cloud":
        yield "kinds", "there is no cloud lane for OCR: use a local backend"
    if locality == "local" and _REMOTE.fullmatch(model.served_name):
        field = "served_as" if model.served_as else "name"
        yield (
            field,
            "a model that its server runs on remote machines is not local: use a cloud backend",
        )


def _problems_of_rule(catalogue: Catalogue, rule: Rule) -> Iterator[_Problem]:
    if "cloud" in rule.prefer and Privacy.PRIVATE in rule.when.privacy:
        yield ("prefer",), "private jobs may not use a cloud: remove it from the rule"
    if len(set(rule.prefer)) < len(rule.prefer):
        yield ("prefer",), "a locality is named twice"
    if unknown := set(rule.when.task) - {entry.name for entry in catalogue.tasks}:
        yield ("when", "task"), f"there is no task {min(unknown)}"


class _Source:
    """A YAML document with the lines of its parts."""

    def __init__(self, file: str, root: yaml.Node | None) -> None:
        self._file = file
        self._root = root

    def error(self, path: Sequence[int | str], problem: str) -> CatalogueError:
        """An error at the deepest existing part of a path."""
        node, names = self._root, list[str]()
        for step in path:
            child = _child(node, step)
            if child is None:
                if isinstance(step, str) and not _is_internal(step):
                    names.append(step)
                continue
            node = child
            names.append(str(step) if isinstance(step, str) else f"[{step}]")
        line = 1 if node is None else node.start_mark.line + 1
        name = ".".join(names).replace(".[", "[")
        return CatalogueError(f"{self._file}:{line}: {name or 'catalogue'}: {problem}")

    def refuse_repeated_keys(self) -> None:
        """Raise for a key that occurs twice; YAML would keep the last one silently."""
        remaining = [self._root]
        while remaining:
            node = remaining.pop()
            if isinstance(node, yaml.SequenceNode):
                remaining += node.value
            if isinstance(node, yaml.MappingNode):
                seen: set[str] = set()
                for key, value in node.value:
                    if not isinstance(key, yaml.ScalarNode):
                        continue
                    if key.value in seen:
                        line = key.start_mark.line + 1
                        raise CatalogueError(f"{self._file}:{line}: {key.value} occurs twice")
                    seen.add(key.value)
                    remaining.append(value)


def _child(node: yaml.Node | None, step: int | str) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == step), None)
    return None


def _is_internal(step: str) -> bool:
    """Whether pydantic added the step for a branch of a union: `literal['…']`, `tuple[…]`."""
    return "[" in step
