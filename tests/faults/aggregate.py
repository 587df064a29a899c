"""The report of all laboratories, as JSON and as text; recovery limits and minimum counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final

from tests.faults.job_mix import ALL, KINDS

if TYPE_CHECKING:
    from tests.faults.scales import Minimum

SHOWN_COUNTS: Final = (
    "committed",
    "rolled back",
    "history: bad input",
    "zombies' attempts refused, receipts kept",
    "documents compared",
    "token",
    "result",
    "ended succeeded",
    "ended dead",
    "ended cancelled",
    "ended superseded",
)
"""Counts in the text."""
TIMED_FROM_LOSS: Final = ("after", "before COMMIT", "inside", "frozen", "a worker is killed")
"""Prefixes of faults whose recovery is timed from the loss of jobs until they are queued again."""
LEASES_S: Final = {"forks": 1.0, "real": 2.0, "disk": 1.0, "network": 1.0}
WORKER_KILLED: Final = "a worker is killed"
ROOT_ONLY: Final = {"disk": "the disk is full", "network": "the network is silent"}
"""Laboratory to its fault, where that requires root; without root the report has a note."""
RECOVERY_MARGIN_S: Final = 5.0
"""Lost jobs are guaranteed to be runnable within a lease and this time."""


def recovery_limit_s(name: str) -> float:
    """Longest time until a laboratory's lost jobs are runnable again."""
    return LEASES_S[name] + RECOVERY_MARGIN_S


def late_recoveries(name: str, recovery: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The recoveries of a laboratory that exceeded the limit."""
    return [
        f"{fault}: p99 {times['p99_s']} s"
        for fault, times in recovery.items()
        if fault.startswith(TIMED_FROM_LOSS) and times["p99_s"] > recovery_limit_s(name)
    ]


def summary(times: list[float]) -> dict[str, float]:
    """Count, median and 99th percentile, in seconds."""
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {"count": len(times), "p50_s": round(cuts[49], 3), "p99_s": round(cuts[98], 3)}


def merge(seed: int, seconds: float, reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Merge the reports: totals, and the report of each laboratory."""
    parts = list(reports.values())
    recovery: dict[str, list[float]] = {}
    for part in parts:
        times = part.pop("recovery_s")
        part["recovery"] = {fault: summary(each) for fault, each in sorted(times.items())}
        for fault, each in times.items():
            recovery.setdefault(fault, []).extend(each)
        if late := late_recoveries(part["name"], part["recovery"]):
            part["violations"]["lost jobs were not runnable again in time"] = late
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "kills": _summed(part["kills"] for part in parts),
        "points": _summed(part["points"] for part in parts),
        "children": _summed(part["children"] for part in parts),
        "deaths": sum(part["deaths"] for part in parts),
        "zombies": sum(part["zombies"] for part in parts),
        "faults": _summed(part["faults"] for part in parts),
        "forged": sum(part["forged"] for part in parts),
        "seen": _summed(part["seen"] for part in parts),
        "poison": _summed(part["poison"] for part in parts),
        "recovery": {fault: summary(times) for fault, times in sorted(recovery.items())},
        "growth": {name: part["growth"] for name, part in reports.items() if part["growth"]},
        "notes": [f"{name}: {note}" for name, part in reports.items() for note in part["notes"]],
        "slow": [f"{name}: {slow}" for name, part in reports.items() for slow in part["slow"]],
        "violations": {
            f"{name}: {kind}": examples
            for name, part in reports.items()
            for kind, examples in part["violations"].items()
        },
        "laboratories": reports,
    }


def shortfalls(report: Mapping[str, Any], minimum: Minimum, points: Iterable[str]) -> list[str]:
    """List the counts that a run did not reach.

    Args:
        report: the merged report.
        minimum: the run's minimum counts.
        points: named points, each of which must be reached once.
    """
    seen, kills, faults = report["seen"], report["kills"], report["faults"]
    unavailable = {
        fault for lab, fault in ROOT_ONLY.items() if report["laboratories"][lab]["notes"]
    }
    counts = [
        ("committed jobs", seen["committed"], minimum.committed),
        ("kills at named points", sum(kills.get(p, 0) for p in points), minimum.kills),
        ("real workers killed", kills.get(WORKER_KILLED, 0), minimum.worker_kills),
        ("zombies", seen.get("zombies", 0), minimum.zombies),
        ("receipts of zombies", seen.get("zombies' attempts refused, receipts kept", 0), 1),
        ("forged messages", report["forged"], minimum.forged),
        ("bad input", seen.get("history: bad input", 0), minimum.bad_input),
        ("poison jobs", sum(report["poison"].values()), minimum.poison),
        *(
            (each.name, report["poison"].get(each.name, 0), 1)
            for each in ALL.values()
            if each.poison
        ),
        *((each.name, seen.get(f"committed, {each.name}", 0), minimum.each_kind) for each in KINDS),
        *((point, report["points"].get(point, 0), 1) for point in points),
        *((f"{child} killed", count, 1) for child, count in report["children"].items()),
        *(
            (fault, faults.get(fault, 0), least)
            for fault, least in minimum.faults.items()
            if fault not in unavailable
        ),
    ]
    return [f"{name}: {count}, not {least}" for name, count, least in counts if count < least]


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def as_text(report: Mapping[str, Any]) -> str:
    """Format the report as text."""
    violations = report["violations"]
    lines = [
        f"seed {report['seed']}, {report['seconds']} s",
        "nothing lost, nothing done twice" if not violations else f"{len(violations)} violations",
        *(f"  VIOLATION {kind}: {examples[0]}" for kind, examples in violations.items()),
        *(f"  TOO FEW {shortfall}" for shortfall in report["shortfalls"]),
        "",
        *_table("killed by SIGKILL at", report["kills"]),
        *_table("faults of servers and network", report["faults"]),
        *_table(
            "seen",
            {name: report["seen"].get(name, 0) for name in SHOWN_COUNTS}
            | {"zombies": report["zombies"], "forged messages": report["forged"]},
        ),
        *_table("poison, each dead within its attempts", report["poison"]),
        "recovery, p50 and p99 in seconds",
        *(
            f"  {fault:<62} {times['count']:>6} {times['p50_s']:>8.2f} {times['p99_s']:>8.2f}"
            for fault, times in report["recovery"].items()
        ),
    ]
    for name, growth in report["growth"].items():
        lines += ["", f"growth in the laboratory {name}: first, last, most"]
        lines += [
            f"  {measure:<62} {values['first']:>8} {values['last']:>8} {values['most']:>8}"
            for measure, values in growth.items()
        ]
    if report["slow"]:
        lines += ["", "late recoveries, with the faults of that time (seconds after the first)"]
        lines += [f"  {each}" for each in report["slow"]]
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    return [title, *(f"  {name:<62} {count:>6}" for name, count in rows.items()), ""]
