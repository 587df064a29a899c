"""The report of one laboratory, as JSON and as text."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.aggregate import LOST, promised_s
from tests.faults.checker import Verdict
from tests.faults.job_mix import ALL

SHOWN = 5
"""Examples of a violation that a report holds."""
MOST_SLOW = 20
"""Late recoveries that a report describes, with the faults of that time."""
HALTING = frozenset(
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
"""Faults of database or reconciler: nothing is rescued meanwhile, nor for a lease after."""


@dataclass(slots=True)
class Report:
    """One laboratory's run.

    Attributes:
        kills: SIGKILLs, by point or process.
        points: how often the planned fault occurred at each named point.
        children: how often each child of a real stack's supervisor was killed by name.
        mishaps: faults of servers and network, by name.
        recovery_s: fault to the seconds from it until the jobs that it hit were queued again; after
            a fault of a server or the network, until jobs were claimed again.
        seen: counts of events.
        grown: first and last value of each measure that must not grow without bound.
        poison: committed jobs that must die, by variant.
        notes: what this machine does not offer.
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
    mishaps: Counter[str] = field(default_factory=Counter)
    forged: int = 0
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    grown: dict[str, Any] = field(default_factory=dict)
    poison: dict[str, int] = field(default_factory=dict)
    violations: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)

    def take(self, verdict: Verdict, lines: Iterable[dict[str, Any]]) -> None:
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
        mishaps = [line for line in history if line["what"].startswith("mishap")]
        claims = sorted(verdict.tokens.values())
        halts = _halts(history, claims)
        self.points.update(line["point"] for line in history if line["what"] == "point")
        for line in history:
            if line["what"] in {"point", "killed"}:
                for token in line.get("tokens", [line.get("token")]):
                    if token in verdict.returned:
                        returned = verdict.returned[token]
                        self._returned(line["point"], line["at"], returned, halts)
                        self._explain_slow(line["point"], line["at"], returned, mishaps)
            # What a worker held is timed above; a claim of another worker says nothing of it.
            elif line["what"] == "mishap over" and not line["name"].startswith(LOST):
                position = bisect_right(claims, line["at"])
                if position < len(claims):
                    self._recovered(line["name"], claims[position] - line["at"])

    def _returned(
        self, fault: str, struck: float, returned: float, halts: list[tuple[float, float]]
    ) -> None:
        """Time a fault's jobs until they were queued again, from the end of a halt if there was one."""
        ends = [end for begin, end in halts if begin < returned and end > struck]
        if returned < struck:
            return  # an earlier fault had hit it
        if ends:
            self._recovered(f"{fault}, database unavailable", max(0.0, returned - max(ends)))
        else:
            self._recovered(fault, returned - struck)

    def _explain_slow(
        self, fault: str, struck: float, returned: float, mishaps: list[dict[str, Any]]
    ) -> None:
        """Describe the first few late recoveries, with the faults of that time."""
        limit_s = promised_s(self.name)
        if returned - struck <= limit_s or len(self.slow) >= MOST_SLOW:
            return
        meanwhile = [
            f"{line['at'] - struck:+.1f} {line['name']}{' (over)' * line['what'].endswith('over')}"
            for line in mishaps
            if struck - limit_s < line["at"] < returned
        ]
        self.slow.append(f"{fault}: {returned - struck:.1f} s; {', '.join(meanwhile)}")

    def _recovered(self, fault: str, seconds: float) -> None:
        self.recovery_s.setdefault(fault, []).append(round(seconds, 3))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "kills": {"all": sum(self.kills.values()), **dict(sorted(self.kills.items()))},
            "points": dict(sorted(self.points.items())),
            "children": dict(sorted(self.children.items())),
            "deaths": self.deaths,
            "zombies": self.zombies,
            "mishaps": dict(sorted(self.mishaps.items())),
            "forged": self.forged,
            "recovery_s": self.recovery_s,
            "poison": self.poison,
            "seen": self.seen,
            "grown": self.grown,
            "notes": self.notes,
            "slow": self.slow,
            "violations": self.violations,
        }


def _halts(lines: list[dict[str, Any]], claims: list[float]) -> list[tuple[float, float]]:
    """Begin and end of each halt of database or reconciler; it ends with the next claim."""
    begun: dict[str, float] = {}
    halts: list[tuple[float, float]] = []
    for line in lines:
        if line["what"] == "mishap" and line["name"] in HALTING:
            begun[line["name"]] = line["at"]
        elif line["what"] == "mishap over" and line["name"] in begun:
            position = bisect_right(claims, line["at"])
            end = claims[position] if position < len(claims) else line["at"]
            halts.append((begun.pop(line["name"]), end))
    return halts
