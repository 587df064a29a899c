"""A name that begins with an underscore is used only by its own module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("vestry", "tasks", "inference", "models", "workers")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def is_in_product(module: str | None) -> bool:
    return (module or "").partition(".")[0] in PACKAGES


def private_uses(tree: ast.Module) -> Iterator[str]:
    """Private names of other modules: `from module import _name`, and `module._name`."""
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.level or is_in_product(node.module)):
            for alias in node.names:
                if is_private(alias.name):
                    yield f"{node.module}.{alias.name}"
                if alias.name.islower():
                    modules.add(alias.asname or alias.name)
        elif isinstance(node, ast.Import):
            modules |= {(a.asname or a.name) for a in node.names if is_in_product(a.name)}
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and is_private(node.attr)
            and ast.unparse(node.value) in modules
        ):
            yield ast.unparse(node)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_name_of_another_module_is_used(path: Path) -> None:
    assert not list(private_uses(ast.parse(path.read_text(encoding="utf-8"))))


def test_each_form_of_use_is_detected() -> None:
    text = "from workers.stack.valkey import _rules, USERS\nfrom workers import db\ndb._abort(1)\n"
    assert list(private_uses(ast.parse(text))) == ["workers.stack.valkey._rules", "db._abort"]
