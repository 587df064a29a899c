"""The loader of models/queries.sql, and placeholders in Postgres's notation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models import claims, sql
from models.sql import QUERIES, NativeQuery, load

MODELS = Path(sql.__file__).parent


def test_statements_are_loaded_by_name_without_comments(tmp_path: Path) -> None:
    path = tmp_path / "some.sql"
    path.write_text(
        "-- About the file.\n\n-- name: one\n-- Why.\nSELECT 1\n  -- How.\n  WHERE true\n\n"
        "-- name: two\nSELECT 2\n"
    )
    assert load(path) == {"one": "SELECT 1\n  WHERE true", "two": "SELECT 2"}


def test_duplicate_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.sql"
    path.write_text("-- name: one\nSELECT 1\n-- name: one\nSELECT 2\n")
    with pytest.raises(ValueError, match="two statements named one"):
        load(path)


def test_every_statement_is_used_once_in_this_package() -> None:
    code = "".join(path.read_text() for path in MODELS.glob("*.py"))
    assert sorted(re.findall(r'QUERIES\["(\w+)"\]', code)) == sorted(QUERIES)


def test_native_query_numbers_its_parameters() -> None:
    query = NativeQuery.of("SELECT %(b)s::int, %(a)s, %(b)s")
    assert query == NativeQuery("SELECT $1::int, $2, $1", ("b", "a"))


def test_claim_has_no_unresolved_field_or_placeholder() -> None:
    for query in (claims.CLAIM, claims.CLAIM_QUARANTINED):
        assert not re.search(r"[{}%]", query.text)
