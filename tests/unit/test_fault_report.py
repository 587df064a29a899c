"""How the fault laboratory measures recovery: a wrong measure hides errors or reports false ones."""

from __future__ import annotations

from typing import Any

from tests.faults.aggregate import TIMED_FROM_LOSS, merge, shortfalls
from tests.faults.checker import Verdict
from tests.faults.failpoints import AFTER_CLAIM, AFTER_COMMIT, FROZEN, POINTS
from tests.faults.job_mix import ALL, KINDS
from tests.faults.report import Report
from tests.faults.scales import Minimum

KILLED = "a worker is killed"


def report(requeued_s: float, *others: dict[str, Any]) -> Report:
    """A worker is killed at 100 s, its jobs are requeued later; the next claim is at 150 s."""
    lines = [
        {"what": "fault", "at": 99.9, "name": KILLED},
        {"what": "killed", "at": 100.0, "point": KILLED, "tokens": ["held"]},
        {"what": "fault over", "at": 100.1, "name": KILLED},
        *others,
    ]
    result = Report("real", 1)
    result.add_verdict(
        Verdict(requeued={"held": requeued_s}, tokens={"held": 99.0, "next": 150.0}), lines
    )
    return result


def test_recovery_of_killed_worker_is_time_to_requeue_and_not_to_next_claim() -> None:
    recovery_report = report(102.0)
    assert recovery_report.recovery_s == {KILLED: [2.0]}
    assert recovery_report.slow == []


def test_late_recovery_is_reported_and_is_a_violation() -> None:
    emptied = {"what": "fault over", "at": 101.0, "name": "the broker is emptied"}
    recovery_report = report(108.0, emptied)
    assert recovery_report.recovery_s == {KILLED: [8.0], "the broker is emptied": [49.0]}
    (slow,) = recovery_report.slow
    assert "8.0 s" in slow
    assert "+1.0 the broker is emptied (over)" in slow
    assert list(merge(1, 1.0, {"real": recovery_report.as_dict()})["violations"]) == [
        "real: lost jobs were not runnable again in time"
    ]


def test_recovery_during_outage_is_timed_from_end_of_outage() -> None:
    recovery_report = report(
        160.0,
        {"what": "fault", "at": 100.5, "name": "the network is cut"},
        {"what": "fault over", "at": 140.0, "name": "the network is cut"},
    )
    assert recovery_report.recovery_s == {
        f"{KILLED}, database unavailable": [10.0],
        "the network is cut": [10.0],
    }


def test_recovery_of_every_worker_point_is_timed_from_loss() -> None:
    assert all(point.startswith(TIMED_FROM_LOSS) for point in (*POINTS, FROZEN))


def test_shortfalls_name_each_missed_point_and_count() -> None:
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
        "kills": {AFTER_CLAIM: 5, KILLED: 1},
        "faults": {"postgres restarts": 1},
        "points": {AFTER_CLAIM: 5},
        "children": {"dispatcher": 1},
        "forged": 1,
        "poison": poison,
        "laboratories": {"disk": {"notes": ["no"]}, "network": {"notes": []}},
    }
    minimum = Minimum(
        committed=10,
        kills=5,
        worker_kills=1,
        faults={"postgres restarts": 1, "the disk is full": 1},
        zombies=1,
        forged=1,
        bad_input=1,
        poison=len(poison),
        each_kind=3,
    )
    assert shortfalls(document, minimum, [AFTER_CLAIM]) == []
    document["children"]["valkey"] = 0
    document["faults"] = {}
    missed = shortfalls(document, minimum, [AFTER_CLAIM, AFTER_COMMIT])
    assert missed == [
        f"{AFTER_COMMIT}: 0, not 1",
        "valkey killed: 0, not 1",
        "postgres restarts: 0, not 1",
    ]
