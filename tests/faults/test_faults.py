"""The smoke scale of `make faults`: nothing is lost and nothing is done twice under faults.

A run that fails prints its seed; `python -m tests.faults --smoke --seed N` repeats faults and load.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import Any, Final

import pytest

from tests.faults.aggregate import TIMED_FROM_LOSS, late_recoveries
from workers.home import CHECKOUT

LONGEST_S: Final = 560.0


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    # Its own process: it forks workers, which a process with threads must not do.
    seed = secrets.randbelow(2**31)
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--smoke", f"--seed={seed}"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert run.stdout, f"seed {seed}: {run.stderr[-3000:]}"
    document: dict[str, Any] = json.loads(run.stdout)
    return document


pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONGEST_S + 20)]


def test_run_with_faults_violates_no_guarantee(report: dict[str, Any]) -> None:
    violations = json.dumps(report["violations"], indent=1)
    assert not report["violations"], f"seed {report['seed']}: {violations}"


def test_run_reaches_every_fault_and_point_and_minimum_count(
    report: dict[str, Any],
) -> None:
    assert report["shortfalls"] == [], f"seed {report['seed']}"


def test_lost_jobs_are_runnable_again_within_limit(report: dict[str, Any]) -> None:
    for name in ("forks", "real"):
        times = report["laboratories"][name]["recovery"]
        assert any(fault.startswith(TIMED_FROM_LOSS) for fault in times)
        assert late_recoveries(name, times) == []


def test_laboratory_without_root_adds_note(report: dict[str, Any]) -> None:
    for name, fault in (("disk", "the disk is full"), ("network", "the network is silent")):
        part = report["laboratories"][name]
        assert part["faults"].get(fault, 0) or part["notes"]
