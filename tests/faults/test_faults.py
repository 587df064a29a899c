"""`make faults`: nothing is lost and nothing done twice, while everything is killed.

A run that fails prints its seed; `python -m tests.faults --seed N` repeats its faults and its load.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from typing import Any, Final

import pytest

from tests.faults.aggregate import LOST, late
from tests.faults.job_mix import KINDS
from workers.home import CHECKOUT

LONGEST_S: Final = 560.0


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    # A process of its own: it forks its workers, which a process with threads must not do.
    seed = secrets.randbelow(2**31)
    run = subprocess.run(
        [sys.executable, "-m", "tests.faults", f"--seed={seed}"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    assert run.stdout, f"seed {seed}: {run.stderr[-3000:]}"
    found: dict[str, Any] = json.loads(run.stdout)
    return found


pytestmark = [pytest.mark.slow, pytest.mark.timeout(LONGEST_S + 20)]


def test_no_promise_is_broken(report: dict[str, Any]) -> None:
    told = json.dumps(report["violations"], indent=1)
    assert not report["violations"], f"seed {report['seed']}: {told}"


def test_enough_was_done_and_enough_befell_it(report: dict[str, Any]) -> None:
    seen, mishaps, kills = report["seen"], report["mishaps"], report["kills"]
    real = kills.get("a worker is killed", 0)
    assert seen["committed"] >= 5000
    assert sum(kills.values()) - kills["all"] - real >= 200
    assert real >= 10
    assert kills.get("the supervisor is killed", 0) >= 1
    assert mishaps["the broker is emptied"] >= 10
    assert mishaps["postgres restarts"] >= 2
    assert seen["zombies"] >= 20
    assert seen["zombies' attempts refused, receipts kept"] > 0
    assert report["forged"] >= 1000
    assert seen["history: bad input"] >= 500
    assert sum(report["poison"].values()) >= 40
    assert len(report["poison"]) >= 9
    assert all(seen[f"committed, {sort.name}"] >= 5 for sort in KINDS), "of every kind"


def test_every_lost_job_is_runnable_again_in_time(report: dict[str, Any]) -> None:
    for name in ("forks", "real"):
        times = report["laboratories"][name]["recovery"]
        assert any(fault.startswith(LOST) for fault in times)
        assert late(name, times) == []


def test_what_cannot_be_had_here_is_said(report: dict[str, Any]) -> None:
    for name, mishap in (("disk", "the disk is full"), ("network", "the network is silent")):
        told = report["laboratories"][name]
        assert told["mishaps"].get(mishap, 0) >= 2 or told["notes"]
