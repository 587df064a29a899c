"""The order of the tests: random by a seed, and shared out so that a declared stack is started once.

Groups of tests stay together: the modules that declare one stack (`tests/stacks.py`), and each other
module by itself. With `--dist loadgroup --no-loadscope-reorder` xdist gives a group to one process.
Groups that take long come first, so that short ones fill the end; within that the order of groups,
modules and tests is random.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Final

import pytest
from xdist.scheduler import LoadGroupScheduling

from tests.stacks import declared_stack

SEED: Final = pytest.StashKey[int]()
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


class ScopeScheduling(LoadGroupScheduling):
    """A declared group, or else a module, to one process."""

    def _split_scope(self, nodeid: str) -> str:
        # xdist appends `@group` to the ids of tests in a declared group.
        group: str = super()._split_scope(nodeid)
        return nodeid.partition("::")[0] if group == nodeid else group


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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle, and name each test's group to xdist."""
    groups: dict[str, dict[str, list[pytest.Item]]] = defaultdict(lambda: defaultdict(list))
    for item in items:
        module = item.nodeid.partition("::")[0]
        declared = declared_stack(item)
        groups[module if declared is None else declared.name][module].append(item)
        if declared is not None:
            item.add_marker(pytest.mark.xdist_group(declared.name))
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
