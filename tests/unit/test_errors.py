"""Every error has its message, also under `python -OO`, which strips docstrings."""

from __future__ import annotations

import subprocess
import sys

import pytest

from vestry.cli import main
from vestry.db.replay import JobFilter
from vestry.errors import DatabaseError, InvalidInput, from_sqlstate

# Constructs each error class with its required arguments, and prints name and message.
SCRIPT = """
import importlib, inspect, sys
module = importlib.import_module(sys.argv[1])
classes = [
    kind for _, kind in inspect.getmembers(module, inspect.isclass)
    if issubclass(kind, Exception) and kind.__module__ == module.__name__
]
values = {"size": 2, "limit": 1}
for kind in classes:
    required = [
        name for name, parameter in inspect.signature(kind).parameters.items()
        if parameter.default is parameter.empty
    ]
    error = kind(*(values.get(name, name) for name in required))
    print(kind.__name__, error, sep=": ")
"""


def messages(module: str, *options: str) -> list[str]:
    command = [sys.executable, *options, "-c", SCRIPT, module]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.parametrize("module", ["vestry.errors", "inference.errors"])
def test_every_error_has_the_same_message_without_docstrings(module: str) -> None:
    plain = messages(module)
    assert len(plain) > 20
    assert all(line.partition(": ")[2] for line in plain)
    assert messages(module, "-OO") == plain


@pytest.mark.parametrize(
    ("sqlstate", "part"),
    [
        ("3F000", "python -m workers.migrate"),
        ("42P01", "python -m workers.migrate"),
        ("42883", "python -m workers.migrate"),
        ("42501", "grant"),
        ("25006", "standby"),
        ("22003", "smaller"),
        ("XX000", "its log"),
    ],
)
def test_refused_statement_says_what_to_do(sqlstate: str, part: str) -> None:
    error = from_sqlstate(sqlstate)
    assert isinstance(error, DatabaseError)
    assert part in str(error)
    assert sqlstate in str(error)


def test_limit_beyond_the_databases_numbers_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dead", "list", "--limit", "9" * 20]) == 2
    assert "--limit" in capsys.readouterr().err
    for limit in (10**20, 0, "3"):
        with pytest.raises(InvalidInput, match=r"^limit: "):
            JobFilter(limit=limit)  # type: ignore[arg-type]
