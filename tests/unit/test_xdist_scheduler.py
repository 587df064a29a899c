"""Order of the tests: random by a seed; modules and declared stacks stay together."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import run_dir, xdist_scheduler
from tests.stacks import ECHO, ECHO_WITH_FLOWER, SharedStack

MODULES: dict[str, SharedStack | None] = {
    "tests/unit/test_a.py": None,
    "tests/unit/test_b.py": None,
    "tests/integration/test_c.py": ECHO,
    "tests/integration/test_d.py": None,
    "tests/integration/test_e.py": ECHO,
    "tests/integration/test_f.py": ECHO_WITH_FLOWER,
}


class Item:
    """The attributes of a collected test that the scheduler reads."""

    def __init__(self, module: str, number: int) -> None:
        self.nodeid = f"{module}::test_{number}"
        self.path = Path(module)
        self.fixturenames: list[str] = []
        self.module = module

    def get_closest_marker(self, name: str) -> Any:
        declared = MODULES[self.module]
        return SimpleNamespace(args=[declared]) if name == "stack" and declared else None


def ordered(seed: int, **config: Any) -> list[Item]:
    items = [Item(module, number) for module in MODULES for number in range(5)]
    fake: Any = SimpleNamespace(stash={xdist_scheduler.SEED: seed}, **config)
    xdist_scheduler.pytest_collection_modifyitems(fake, items)  # type: ignore[arg-type]
    return items


def names(items: list[Item]) -> list[str]:
    return [item.nodeid for item in items]


def test_seed_repeats_the_order_and_another_seed_changes_it() -> None:
    assert names(ordered(1)) == names(ordered(1))
    assert names(ordered(1)) != names(ordered(2))
    assert sorted(names(ordered(1))) == sorted(names(ordered(2)))


@pytest.mark.parametrize("seed", range(20))
def test_modules_and_declared_stacks_stay_together_and_unit_tests_come_last(seed: int) -> None:
    items = ordered(seed)
    modules = [module for module, _ in groupby(item.module for item in items)]
    assert sorted(modules) == sorted(MODULES)
    declared = [MODULES[module] for module in modules]
    assert set(declared[:3]) == {ECHO, ECHO_WITH_FLOWER}
    assert declared[1] is ECHO, "the modules on one stack follow each other"
    assert all("unit" in module for module in modules[-2:])


def test_scheduler_assigns_a_declared_group_or_a_module_to_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(run_dir.VARIABLE, str(tmp_path))
    ordered(1, workerinput={})
    scheduling: Any = object.__new__(xdist_scheduler.ScopeScheduling)
    for module, declared in MODULES.items():
        scope = scheduling._split_scope(f"{module}::test_0[a::b]")
        assert scope == (module if declared is None else declared.name)
