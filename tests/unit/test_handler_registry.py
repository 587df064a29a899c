"""The kinds that each pool runs."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.registry import handlers
from vestry.lanes import KINDS, Kind, Pool

NO_ROUTER: Any = None


def kinds_of(pool: Pool) -> set[Kind]:
    return set(handlers(NO_ROUTER, pool, lambda _: 1, None))


def test_each_kind_has_a_handler_in_its_own_pool() -> None:
    for pool in (Pool.GPU, Pool.CPU):
        assert kinds_of(pool) == {kind for kind in KINDS if KINDS[kind] is pool}


def test_cloud_pool_runs_the_kinds_of_the_gpu_pool() -> None:
    assert kinds_of(Pool.CLOUD) == kinds_of(Pool.GPU)


def test_second_kind_of_the_cpu_pool_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.KINDS", {**KINDS, "rerank": Pool.CPU})
    assert kinds_of(Pool.CPU) == {"ocr", "rerank"}
    assert "rerank" not in kinds_of(Pool.GPU)
