"""What is said about a missing or old pgvector."""

from __future__ import annotations

import pytest

from vestry.db.schema_revision import pgvector_fault


@pytest.mark.parametrize("release", ["0.8.3", "0.8.3-dev", "0.8.10", "0.9", "1.0.0rc1"])
def test_new_enough_release_has_no_fault(release: str) -> None:
    assert pgvector_fault(release) is None


@pytest.mark.parametrize(
    ("release", "available", "part"),
    [
        (None, None, "install 0.8.3 or newer on the database server"),
        (None, "0.8.3", "not created in this database: run `python -m workers.migrate`"),
        (None, "0.8.2", "is 0.8.2, and 0.8.3 or newer is needed"),
        ("0.8.2-dev", "0.8.3", "is 0.8.2-dev, and 0.8.3 or newer is needed"),
        ("unknown", None, "is unknown, and 0.8.3 or newer is needed"),
    ],
)
def test_missing_or_old_release_has_its_remedy(
    release: str | None, available: str | None, part: str
) -> None:
    assert part in (pgvector_fault(release, available) or "")
