"""The report of one laboratory, as JSON and as text."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.aggregate import TIMED_FROM_LOSS, recovery_limit_s
from tests.faults.checker import Verdict
from tests.faults.job_mix import ALL

SHOWN = 5
"""Examples of a violation in a report."""
SHOWN_SLOW = 20
"""Late recoveries in a report, with the faults of that time."""
OUTAGES = frozenset(
    {
        "postgres restarts",
        "connections run out",
        "the supervisor is killed",
        "the reconciler is killed",
        "the database is cut off",
        "the database is half open",
        "the database flaps",
        "the network is cut",
        "the network is silent",
        "the disk is full",
    }
)
"""Faults of database or reconciler: no lease is rescued during them, nor for a lease after."""


@dataclass(slots=True)
class Report:
    """One laboratory's run.

    Attributes:
        kills: SIGKILLs, by point or process.
        points: how often the planned fault occurred at each named point.
        children: how often each child of a real stack's supervisor was killed by name.
        faults: faults of servers and network, by name.
        recovery_s: fault to the seconds from it until the jobs that it hit were queued again; after
            a fault of a server or the network, until jobs were claimed again.
        seen: counts of events.
        growth: first and last value of each measure that must not grow without bound.
        poison: committed jobs that must become dead, by variant.
        notes: features that this machine lacks.
        slow: the first late recoveries, and the faults of that time.
    """

    name: str
    seed: int
    seconds: float = 0.0
    kills: Counter[str] = field(default_factory=Counter)
    points: Counter[str] = field(default_factory=Counter)
    children: Counter[str] = field(default_factory=Counter)
    deaths: int = 0
    zombies: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    forged: int = 0
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    growth: dict[str, Any] = field(default_factory=dict)
    poison: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def add_verdict(self, verdict: Verdict, lines: Iterable[dict[str, Any]]) -> None:
        """Add the checker's result."""
        self.seen = dict(sorted(verdict.counts.items()))
        self.poison = {
            name: count
            for name, variant in ALL.items()
            if variant.poison and (count := verdict.counts[f"committed, {name}"])
        }
        self.violations = {
            kind: [f"{len(examples)} lines", *examples[:SHOWN]]
            for kind, examples in verdict.violations.items()
        }
        history = list(lines)
        faults = [line for line in history if line["what"].startswith("fault")]
        claims = sorted(verdict.tokens.values())
        outages = _outages(history, claims)
        self.points.update(line["point"] for line in history if line["what"] == "point")
        for line in history:
            if line["what"] in {"point", "killed"}:
                for token in line.get("tokens", [line.get("token")]):
                    if token in verdict.requeued:
                        requeued_at = verdict.requeued[token]
                        self._time_requeue(line["point"], line["at"], requeued_at, outages)
                        self._explain_slow(line["point"], line["at"], requeued_at, faults)
            # A killed worker's jobs are timed above; the next claim may be of other jobs.
            elif line["what"] == "fault over" and not line["name"].startswith(TIMED_FROM_LOSS):
                position = bisect_right(claims, line["at"])
                if position < len(claims):
                    self._add_recovery(line["name"], claims[position] - line["at"])

    def _time_requeue(
        self, fault: str, began_at: float, requeued_at: float, outages: list[tuple[float, float]]
    ) -> None:
        """Time a fault's jobs until they were queued again, from the end of an outage if any."""
        ends = [end for begin, end in outages if begin < requeued_at and end > began_at]
        if requeued_at < began_at:
            return  # an earlier fault had hit it
        if ends:
            self._add_recovery(f"{fault}, database unavailable", max(0.0, requeued_at - max(ends)))
        else:
            self._add_recovery(fault, requeued_at - began_at)

    def _explain_slow(
        self, fault: str, began_at: float, requeued_at: float, faults: list[dict[str, Any]]
    ) -> None:
        """Describe the first few late recoveries, with the faults of that time."""
        limit_s = recovery_limit_s(self.name)
        if requeued_at - began_at <= limit_s or len(self.slow) >= SHOWN_SLOW:
            return
        concurrent = [
            f"{line['at'] - began_at:+.1f} {line['name']}{' (over)' * line['what'].endswith('over')}"
            for line in faults
            if began_at - limit_s < line["at"] < requeued_at
        ]
        self.slow.append(f"{fault}: {requeued_at - began_at:.1f} s; {', '.join(concurrent)}")

    def _add_recovery(self, fault: str, seconds: float) -> None:
        self.recovery_s.setdefault(fault, []).append(round(seconds, 3))

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "name": self.name,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "kills": {"all": sum(self.kills.values()), **dict(sorted(self.kills.items()))},
            "points": dict(sorted(self.points.items())),
            "children": dict(sorted(self.children.items())),
            "deaths": self.deaths,
            "zombies": self.zombies,
            "faults": dict(sorted(self.faults.items())),
            "forged": self.forged,
            "recovery_s": self.recovery_s,
            "poison": self.poison,
            "seen": self.seen,
            "growth": self.growth,
            "notes": self.notes,
            "slow": self.slow,
            "violations": self.violations,
        }


def _outages(lines: list[dict[str, Any]], claims: list[float]) -> list[tuple[float, float]]:
    """Begin and end of each outage of database or reconciler; it ends with the next claim."""
    begun: dict[str, float] = {}
    outages: list[tuple[float, float]] = []
    for line in lines:
        if line["what"] == "fault" and line["name"] in OUTAGES:
            begun[line["name"]] = line["at"]
        elif line["what"] == "fault over" and line["name"] in begun:
            position = bisect_right(claims, line["at"])
            end = claims[position] if position < len(claims) else line["at"]
            outages.append((begun.pop(line["name"]), end))
    return outages
