"""SQL text: the named statements of queries.sql, and native placeholders."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg.rows import RowFactory, tuple_row

_NAMED: Final = re.compile(r"^-- name: (\w+)\n(.*?)(?=^-- name: |\Z)", re.MULTILINE | re.DOTALL)
_PLACEHOLDER: Final = re.compile(r"%\((\w+)\)s")


def load(path: Path) -> dict[str, str]:
    """The statements of a file by name, without comments.

    A line `-- name: NAME` starts a statement. Comments have lines of their own.

    Raises:
        ValueError: two statements have the same name.
    """
    statements: dict[str, str] = {}
    for name, body in _NAMED.findall(path.read_text(encoding="utf-8")):
        if name in statements:
            raise ValueError(f"{path.name} has two statements named {name}")
        lines = (line for line in body.splitlines() if not line.lstrip().startswith("--"))
        statements[name] = "\n".join(line for line in lines if line)
    return statements


QUERIES: Final = load(Path(__file__).with_name("queries.sql"))
"""The statements of queries.sql by name."""


@dataclass(frozen=True, slots=True)
class NativeQuery:
    """A statement with Postgres's own placeholders, `$1`, converted once.

    psycopg converts a text of more than 4,096 characters again for every call (the claim: 51 µs).

    Attributes:
        text: the statement.
        names: the name of each placeholder, in order.
    """

    text: str
    names: tuple[str, ...]

    @classmethod
    def of(cls, text: str) -> NativeQuery:
        """Convert a statement with `%(name)s` placeholders."""
        names = tuple(dict.fromkeys(_PLACEHOLDER.findall(text)))
        return cls(_PLACEHOLDER.sub(lambda match: f"${names.index(match[1]) + 1}", text), names)

    def execute(
        self,
        conn: psycopg.Connection[Any],
        parameters: Mapping[str, Any],
        row_factory: RowFactory[Any] = tuple_row,
    ) -> psycopg.RawCursor[Any]:
        """Execute it prepared, with binary results."""
        cursor = psycopg.RawCursor(conn, row_factory=row_factory)
        values = [parameters[name] for name in self.names]
        return cursor.execute(self.text, values, prepare=True, binary=True)
