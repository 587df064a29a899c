"""The laboratory, small: nothing lost and nothing done twice while workers die at named points.

`make faults` and `make soak` run the same with bigger numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from workers.home import CHECKOUT

SEED = 20261123


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_done_twice() -> None:
    # A process of its own: it forks its workers, which a process with threads must not do.
    run = subprocess.run(
        [
            sys.executable, "-m", "tests.faults", f"--seed={SEED}", "--jobs=1500", "--kills=60",
            "--zombies=5", "--hangs=1", "--a-second=150",
        ],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert run.stdout, run.stderr[-2000:]
    report = json.loads(run.stdout)

    assert report["violations"] == {}, report
    assert run.returncode == 0
    assert report["seen"]["committed"] >= 1500
    assert report["kills"]["all"] >= 60
    assert len(report["kills"]) >= 6
    assert report["zombies"] >= 5
    # Lease 1 s, and a reconciler that is killed, too.
    assert report["recovery"]["p99_s"] <= 6
