"""What the fault laboratory calls recovery: a wrong measure hides a fault, or invents one."""

from __future__ import annotations

from typing import Any

from tests.faults.aggregate import LOST, merged, shortfalls
from tests.faults.checker import Verdict
from tests.faults.failpoints import FROZEN, POINTS
from tests.faults.job_mix import ALL, KINDS
from tests.faults.report import Report
from tests.faults.scales import Minimum

KILLED = "a worker is killed"


def report(returned_s: float, *others: dict[str, Any]) -> Report:
    """Of a worker killed at 100 s, whose lease was taken back later; the next claim is at 150 s."""
    lines = [
        {"what": "mishap", "at": 99.9, "name": KILLED},
        {"what": "killed", "at": 100.0, "point": KILLED, "tokens": ["held"]},
        {"what": "mishap over", "at": 100.1, "name": KILLED},
        *others,
    ]
    told = Report("real", 1)
    told.take(Verdict(returned={"held": returned_s}, tokens={"held": 99.0, "next": 150.0}), lines)
    return told


def test_what_a_killed_worker_held_is_timed_and_not_when_another_claims() -> None:
    told = report(102.0)
    assert told.recovery_s == {KILLED: [2.0]}
    assert told.slow == []


def test_a_lost_job_that_waited_for_too_long_is_told_and_breaks_the_promise() -> None:
    emptied = {"what": "mishap over", "at": 101.0, "name": "the broker is emptied"}
    told = report(108.0, emptied)
    assert told.recovery_s == {KILLED: [8.0], "the broker is emptied": [49.0]}
    (slow,) = told.slow
    assert "8.0 s" in slow
    assert "+1.0 the broker is emptied (over)" in slow
    assert list(merged(1, 1.0, {"real": told.document()})["violations"]) == [
        "real: lost jobs were not runnable again in time"
    ]


def test_it_counts_from_the_return_of_what_kept_everybody_from_it() -> None:
    told = report(
        160.0,
        {"what": "mishap", "at": 100.5, "name": "the network is cut"},
        {"what": "mishap over", "at": 140.0, "name": "the network is cut"},
    )
    assert told.recovery_s == {
        f"{KILLED}, database unavailable": [10.0],
        "the network is cut": [10.0],
    }


def test_every_point_that_loses_a_lease_is_timed_from_the_loss() -> None:
    assert all(point.startswith(LOST) for point in (*POINTS, FROZEN))


def test_run_that_misses_a_point_or_a_count_says_which() -> None:
    kinds = {f"committed, {kind.name}": 3 for kind in KINDS}
    poison = {variant.name: 1 for variant in ALL.values() if variant.poison}
    document: dict[str, Any] = {
        "seen": {
            "committed": 10,
            "zombies": 1,
            "zombies' attempts refused, receipts kept": 1,
            "history: bad input": 1,
            **kinds,
        },
        "kills": {"after the claim": 5, KILLED: 1},
        "mishaps": {"postgres restarts": 1},
        "points": {"after the claim": 5},
        "children": {"dispatcher": 1},
        "forged": 1,
        "poison": poison,
        "laboratories": {"disk": {"notes": ["no"]}, "network": {"notes": []}},
    }
    minimum = Minimum(
        committed=10,
        kills=5,
        worker_kills=1,
        mishaps={"postgres restarts": 1, "the disk is full": 1},
        zombies=1,
        forged=1,
        bad_input=1,
        poison=len(poison),
        each_kind=3,
    )
    assert shortfalls(document, minimum, ["after the claim"]) == []
    document["children"]["valkey"] = 0
    document["mishaps"] = {}
    missed = shortfalls(document, minimum, ["after the claim", "after the commit"])
    assert missed == [
        "after the commit: 0, not 1",
        "valkey killed: 0, not 1",
        "postgres restarts: 0, not 1",
    ]
