"""A committed migration never changes; a change of the schema is a new migration."""

from __future__ import annotations

import hashlib
from pathlib import Path

from alembic.script import ScriptDirectory

from models.bootstrap import alembic_config
from vestry.db.schema_revision import SCHEMA_REVISION

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
DIGESTS = {
    "0001_initial": "a337616285290815971d79f68a492adf60b64ab852a6f5baa47c493a6383427a",
}
"""SHA-256 of a migration's version file and of the files in its SQL directory, by revision."""


def digest(revision: str) -> str:
    content = hashlib.sha256()
    sql = sorted((MIGRATIONS / "sql" / revision).glob("*.sql"))
    for path in (MIGRATIONS / "versions" / f"{revision}.py", *sql):
        content.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    return content.hexdigest()


def test_committed_migrations_are_unchanged() -> None:
    assert {revision: digest(revision) for revision in DIGESTS} == DIGESTS


def test_every_migration_has_a_digest() -> None:
    assert {path.stem for path in (MIGRATIONS / "versions").glob("*.py")} == DIGESTS.keys()
    assert {path.name for path in (MIGRATIONS / "sql").iterdir()} == DIGESTS.keys()


def test_revisions_are_named_for_their_files_and_form_one_line() -> None:
    scripts = ScriptDirectory.from_config(alembic_config("postgresql://unused"))
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(DIGESTS, reverse=True)
    assert scripts.get_heads() == [SCHEMA_REVISION]
