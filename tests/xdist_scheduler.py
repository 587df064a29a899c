"""Order of the tests: random by a seed, and distributed so that a declared stack is started once.

A group of tests is the modules that declare one stack (`tests/stacks.py`), or one other module. With
`--dist loadscope --no-loadscope-reorder` xdist assigns a group to one process. Long groups come first,
so that short ones fill the end; otherwise the order of groups, modules and tests is random.
"""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.run_dir import run_dir
from tests.stacks import declared_stack

SEED: Final = pytest.StashKey[int]()
GROUPS: Final = "groups.json"
"""File in the run directory with each module's group: the scheduler's process collects no tests."""
UNIT: Final = "unit"
"""Directory of the tests that start no servers."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--order-seed", type=int, help="Repeat the order of an earlier run; it printed its seed."
    )


def pytest_configure(config: pytest.Config) -> None:
    option = config.getoption("order_seed")
    seed = random.randrange(10**6) if option is None else option  # noqa: S311 - an order
    config.stash[SEED] = getattr(config, "workerinput", {}).get("order_seed", seed)


class ScopeScheduling(LoadScopeScheduling):
    """Assigns each group of tests to one process."""

    @cached_property
    def _groups(self) -> dict[str, str]:
        directory = run_dir()
        assert directory is not None
        groups: dict[str, str] = json.loads((directory / GROUPS).read_text(encoding="utf-8"))
        return groups

    def _split_scope(self, nodeid: str) -> str:
        return self._groups[nodeid.partition("::")[0]]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ScopeScheduling:
    return ScopeScheduling(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the seed to an xdist process: all must collect in the same order."""
    node.workerinput["order_seed"] = node.config.stash[SEED]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    terminalreporter.write_line(f"order of the tests: --order-seed={config.stash[SEED]}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle the tests, and write each module's group for the scheduler."""
    groups: dict[str, dict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        module = item.nodeid.partition("::")[0]
        declared = declared_stack(item)
        groups[module if declared is None else declared.name][module].append(item)
    if hasattr(config, "workerinput"):
        _write_groups({module: name for name, modules in groups.items() for module in modules})
    rng = random.Random(config.stash[SEED])  # noqa: S311 - an order
    for modules in groups.values():
        for tests in modules.values():
            rng.shuffle(tests)
    order = sorted(_shuffled(rng, groups), key=lambda name: _band(groups[name]))
    items[:] = [
        test
        for name in order
        for module in _shuffled(rng, groups[name])
        for test in groups[name][module]
    ]


def _write_groups(groups: dict[str, str]) -> None:
    """Write the group of each module. All processes write the same; the file is replaced atomically."""
    directory = run_dir()
    assert directory is not None
    part = directory / f"{GROUPS}.{os.getpid()}"
    part.write_text(json.dumps(groups), encoding="utf-8")
    part.replace(directory / GROUPS)


def _shuffled(rng: random.Random, names: Iterable[str]) -> list[str]:
    shuffled = sorted(names)
    rng.shuffle(shuffled)
    return shuffled


def _band(modules: dict[str, list[pytest.Item]]) -> int:
    """Position of a group: 0 declared stacks, 1 other stacks and slow tests, 2 others, 3 unit tests."""
    tests = [test for each in modules.values() for test in each]
    if any(declared_stack(test) for test in tests):
        return 0
    if any("up" in getattr(t, "fixturenames", ()) or t.get_closest_marker("slow") for t in tests):
        return 1
    return 3 if all(UNIT in test.path.parts for test in tests) else 2
