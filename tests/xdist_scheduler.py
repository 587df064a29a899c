"""How `make test` shares out tests: those that share a stack go together, the longest begin first.

Loaded by name (`-p tests.xdist_scheduler`), so that `pytest` alone runs one test after the other.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

CANARY: Final = "canary"
ECHO: Final = "echo"
SHARING: Final = {
    **dict.fromkeys(
        ("test_canary", "test_adversary", "test_monitoring", "test_keys_in_use"), CANARY
    ),
    **dict.fromkeys(
        ("test_bad_commands", "test_bad_input", "test_cli", "test_flower", "test_flows",
         "test_grounding", "test_kills", "test_workers"), ECHO
    ),
}  # fmt: skip
"""Files whose tests look at one stack, to the scope that they are of; other files are one each."""
FIRST: Final = (
    "test_first_run", CANARY, "test_rate_limit", "test_up", ECHO, "test_search",
    "test_devstack", "test_adversity", "test_no_network",
)  # fmt: skip
LAST: Final = "unit"
"""The folder of what takes no time: it fills what is left."""


class Scopes(LoadScopeScheduling):
    """A file, or the files that share a stack, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        path = PurePosixPath(nodeid.partition("::")[0])
        return SHARING.get(path.stem, str(path))


@pytest.hookimpl
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scopes:
    """In place of xdist's own."""
    return Scopes(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first."""
    places = {scope: place for place, scope in enumerate(FIRST)}

    def place(item: pytest.Item) -> int:
        scope = SHARING.get(item.path.stem, item.path.stem)
        return places.get(scope, len(FIRST) + (LAST in item.path.parts))

    items.sort(key=place)
