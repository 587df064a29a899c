"""What one laboratory did and saw, as JSON and for a person."""

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
"""Examples of a violation."""
MOST_SLOW = 20
"""Of recoveries that took longer than is promised, so many are told with what befell the system."""
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
"""What takes database or reconciler away: nothing is rescued meanwhile, nor for a lease after."""


@dataclass(slots=True)
class Report:
    """One laboratory's run.

    Attributes:
        kills: SIGKILLs by the point or process.
        points: how often each named point was reached and did what was planned.
        children: how often each child of a real stack's supervisor was killed by name.
        mishaps: what befell servers and network, by its name.
        recovery_s: by fault, how long after it the jobs it struck stood in line again; after a fault
            of a server or the network, how long until jobs were claimed again.
        seen: everything that was counted.
        poison: of jobs that must die, how many of each sort did.
        grown: first and last measure of what must not grow without bound.
        notes: what could not be had here.
        slow: the first recoveries that took long, and what went on meanwhile.
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
        """Add what the checker found."""
        self.seen = dict(sorted(verdict.counts.items()))
        self.poison = {
            name: count
            for name, sort in ALL.items()
            if sort.poison and (count := verdict.counts[f"committed, {name}"])
        }
        self.violations = {
            kind: [f"{len(found)} lines", *found[:SHOWN]]
            for kind, found in verdict.violations.items()
        }
        told = list(lines)
        mishaps = [line for line in told if line["what"].startswith("mishap")]
        claims = sorted(verdict.tokens.values())
        halts = _halts(told, claims)
        self.points.update(line["point"] for line in told if line["what"] == "point")
        for line in told:
            if line["what"] in {"point", "killed"}:
                for token in line.get("tokens", [line.get("token")]):
                    if token in verdict.returned:
                        returned = verdict.returned[token]
                        self._returned(line["point"], line["at"], returned, halts)
                        self._explain_slow(line["point"], line["at"], returned, mishaps)
            # What a worker held is timed above; that another claims says nothing of it.
            elif line["what"] == "mishap over" and not line["name"].startswith(LOST):
                place = bisect_right(claims, line["at"])
                if place < len(claims):
                    self._recovered(line["name"], claims[place] - line["at"])

    def _returned(
        self, fault: str, struck: float, returned: float, halts: list[tuple[float, float]]
    ) -> None:
        """A fault's jobs stood in line again; counted from the end of what kept everybody from it."""
        ends = [end for begin, end in halts if begin < returned and end > struck]
        if returned < struck:
            return  # it was lost to something else before
        if ends:
            self._recovered(f"{fault}, with the database away", max(0.0, returned - max(ends)))
        else:
            self._recovered(fault, returned - struck)

    def _explain_slow(
        self, fault: str, struck: float, returned: float, mishaps: list[dict[str, Any]]
    ) -> None:
        """What befell the others meanwhile, of the first few that took long."""
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
    """From when to when database or reconciler were away: until somebody claimed again."""
    begun: dict[str, float] = {}
    found: list[tuple[float, float]] = []
    for line in lines:
        if line["what"] == "mishap" and line["name"] in HALTING:
            begun[line["name"]] = line["at"]
        elif line["what"] == "mishap over" and line["name"] in begun:
            place = bisect_right(claims, line["at"])
            end = claims[place] if place < len(claims) else line["at"]
            found.append((begun.pop(line["name"]), end))
    return found
