"""The order of the tests: random by a seed, and shared out so that a declared stack is started once.

Groups of tests stay together: the modules that declare one stack (`tests/stacks.py`), and each other
module by itself. With `--dist loadscope --no-loadscope-reorder` xdist gives a group to one process.
Groups that take long come first, so that short ones fill the end; within that the order of groups,
modules and tests is random.
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
"""In the run's directory, from which the scheduler reads what only the other processes collect."""
UNIT: Final = "unit"
"""The folder of tests that take no time."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--order-seed", type=int, help="Repeat the order of an earlier run; it printed its seed."
    )


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("order_seed")
    drawn = random.randrange(10**6) if given is None else given  # noqa: S311 - an order
    config.stash[SEED] = getattr(config, "workerinput", {}).get("order_seed", drawn)


class ScopeScheduling(LoadScopeScheduling):
    """A declared group, or else a module, to one process."""

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
    """Give the seed to a process of xdist's: all must collect in one order."""
    node.workerinput["order_seed"] = node.config.stash[SEED]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    terminalreporter.write_line(f"order of the tests: --order-seed={config.stash[SEED]}")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle, and write down each module's group for the scheduler."""
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
    """Write module to group; all processes collect the same, and any may be the last."""
    directory = run_dir()
    assert directory is not None
    part = directory / f"{GROUPS}.{os.getpid()}"
    part.write_text(json.dumps(groups), encoding="utf-8")
    part.replace(directory / GROUPS)


def _shuffled(rng: random.Random, names: Iterable[str]) -> list[str]:
    drawn = sorted(names)
    rng.shuffle(drawn)
    return drawn


def _band(modules: dict[str, list[pytest.Item]]) -> int:
    """Bands in order: declared stacks, other slow tests and stacks, the rest, unit tests."""
    tests = [test for each in modules.values() for test in each]
    if any(declared_stack(test) for test in tests):
        return 0
    if any("up" in getattr(t, "fixturenames", ()) or t.get_closest_marker("slow") for t in tests):
        return 1
    return 3 if all(UNIT in test.path.parts for test in tests) else 2
