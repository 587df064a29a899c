"""The errors of `python -m workers.migrate` have no text of the driver, which may quote a value."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import psycopg
import pytest

from models.bootstrap import ROLES
from workers import migrate

SECRET = "sekrit-prayer"


class RefusedError(psycopg.errors.InvalidTextRepresentation):
    """As a server sends it: its message quotes the value."""

    diag: Any = SimpleNamespace(message_primary=f"invalid input syntax: {SECRET}")


def test_refused_statement_is_reported_without_its_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise RefusedError(SECRET)

    monkeypatch.setattr(psycopg, "connect", MagicMock())
    monkeypatch.setattr(migrate, "bootstrap", refuse)
    with pytest.raises(migrate.MigrationError, match="SQLSTATE 22P02") as raised:
        migrate.prepare("", dict.fromkeys(ROLES, "password"))
    assert SECRET not in str(raised.value)
    assert raised.value.__suppress_context__
