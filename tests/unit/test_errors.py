"""Every error has its message, also under `python -OO`, which strips docstrings."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
