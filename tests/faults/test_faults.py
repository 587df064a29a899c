"""The smoke scale of `make faults`: nothing is lost and nothing done twice while everything is killed.

A run that fails prints its seed; `python -m tests.faults --smoke --seed N` repeats faults and load.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import Any, Final

import pytest

from tests.faults.aggregate import LOST, late
from workers.home import CHECKOUT

LONGEST_S: Final = 560.0


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    # A process of its own: it forks its workers, which a process with threads must not do.
    seed = secrets.randbelow(2**31)
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--smoke", f"--seed={seed}"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert run.stdout, f"seed {seed}: {run.stderr[-3000:]}"
    document: dict[str, Any] = json.loads(run.stdout)
    return document


pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONGEST_S + 20)]


def test_no_promise_is_broken(report: dict[str, Any]) -> None:
    violations = json.dumps(report["violations"], indent=1)
    assert not report["violations"], f"seed {report['seed']}: {violations}"


def test_every_fault_and_every_named_point_occurred_and_enough_was_done(
    report: dict[str, Any],
) -> None:
    assert report["shortfalls"] == [], f"seed {report['seed']}"


def test_every_lost_job_is_runnable_again_in_time(report: dict[str, Any]) -> None:
    for name in ("forks", "real"):
        times = report["laboratories"][name]["recovery"]
        assert any(fault.startswith(LOST) for fault in times)
        assert late(name, times) == []


def test_laboratory_that_cannot_run_here_says_so(report: dict[str, Any]) -> None:
    for name, mishap in (("disk", "the disk is full"), ("network", "the network is silent")):
        part = report["laboratories"][name]
        assert part["mishaps"].get(mishap, 0) or part["notes"]
