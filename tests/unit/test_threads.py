"""Compute threads: one default for workers, their stack and llama.cpp servers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from inference.device.threads import default_threads, set_threads
from workers.home import Home
from workers.stack import server_dir
from workers.stack.embedded_stack import EmbeddedStack, StackOptions


def test_threads_are_set_for_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_threads() <= (os.cpu_count() or 1)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert set_threads(3) == 3
    assert os.environ["OMP_NUM_THREADS"] == os.environ["MKL_NUM_THREADS"] == "3"
    assert set_threads(None) == default_threads()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity")
def test_affinity_bounds_threads() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))});"
        "from inference.device.threads import default_threads as d; print(d())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "1"


def test_stack_starts_workers_with_default_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two logical cores of one physical core.
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True: 2 if logical else 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    home = Home(tmp_path / "home")
    home.create()
    try:
        stack = EmbeddedStack(home, StackOptions(flower=False))
        (worker,) = [spec for spec in stack.specs() if spec.name == "shareable-bulk-gpu"]
        environment = worker.prepare().environment
    finally:
        server_dir.remove(home.path)
    assert environment.get("VESTRY_THREADS", str(default_threads())) == "1"
