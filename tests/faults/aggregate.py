"""One report of several laboratories', as JSON and for a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import quantiles
from typing import TYPE_CHECKING, Any, Final

from tests.faults.job_mix import ALL, KINDS

if TYPE_CHECKING:
    from tests.faults.scales import Minimum

COUNTED: Final = (
    "committed",
    "rolled back",
    "history: bad input",
    "zombies' attempts refused, receipts kept",
    "documents looked at",
    "token",
    "result",
    "ended succeeded",
    "ended dead",
    "ended cancelled",
    "ended superseded",
)
"""Of everything that was seen, what a person is shown."""
LOST: Final = ("after", "before the commit", "in ", "frozen", "a worker is killed")
"""How faults begin whose recovery is counted from the loss of jobs until they are runnable again."""
LEASES_S: Final = {"forks": 1.0, "real": 2.0, "disk": 1.0, "network": 1.0}
WORKER_KILLED: Final = "a worker is killed"
ROOT_ONLY: Final = {"disk": "the disk is full", "network": "the network is silent"}
"""Laboratory to its fault, where that needs root; elsewhere a note in the report says so."""
RECOVERED_S: Final = 5.0
"""The promise: a lease and this much."""


def promised_s(name: str) -> float:
    """In which a laboratory's lost jobs are to be runnable again."""
    return LEASES_S[name] + RECOVERED_S


def late(name: str, recovery: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What took longer than is promised, in a laboratory's summaries of recovery."""
    return [
        f"{fault}: p99 {told['p99_s']} s"
        for fault, told in recovery.items()
        if fault.startswith(LOST) and told["p99_s"] > promised_s(name)
    ]


def summary(times: list[float]) -> dict[str, float]:
    """Count, median and 99th percentile, in seconds."""
    cuts = quantiles(times, n=100, method="inclusive") if len(times) > 1 else times * 99
    return {"count": len(times), "p50_s": round(cuts[49], 3), "p99_s": round(cuts[98], 3)}


def merged(seed: int, seconds: float, reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The sum of all laboratories, and each by itself."""
    parts = list(reports.values())
    recovery: dict[str, list[float]] = {}
    for part in parts:
        times = part.pop("recovery_s")
        part["recovery"] = {fault: summary(each) for fault, each in sorted(times.items())}
        for fault, each in times.items():
            recovery.setdefault(fault, []).extend(each)
        if found := late(part["name"], part["recovery"]):
            part["violations"]["lost jobs were not runnable again in time"] = found
    return {
        "seed": seed,
        "seconds": round(seconds, 1),
        "kills": _summed(part["kills"] for part in parts),
        "points": _summed(part["points"] for part in parts),
        "children": _summed(part["children"] for part in parts),
        "deaths": sum(part["deaths"] for part in parts),
        "zombies": sum(part["zombies"] for part in parts),
        "mishaps": _summed(part["mishaps"] for part in parts),
        "forged": sum(part["forged"] for part in parts),
        "seen": _summed(part["seen"] for part in parts),
        "poison": _summed(part["poison"] for part in parts),
        "recovery": {fault: summary(times) for fault, times in sorted(recovery.items())},
        "grown": {name: part["grown"] for name, part in reports.items() if part["grown"]},
        "notes": [f"{name}: {note}" for name, part in reports.items() for note in part["notes"]],
        "slow": [f"{name}: {told}" for name, part in reports.items() for told in part["slow"]],
        "violations": {
            f"{name}: {kind}": found
            for name, part in reports.items()
            for kind, found in part["violations"].items()
        },
        "laboratories": reports,
    }


def shortfalls(report: Mapping[str, Any], minimum: Minimum, points: Iterable[str]) -> list[str]:
    """What occurred less often than a run of this scale must have it; empty where nothing did.

    Args:
        report: of all laboratories.
        minimum: the counts.
        points: each named point must be reached once.
    """
    seen, kills, mishaps = report["seen"], report["kills"], report["mishaps"]
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
            (sort.name, report["poison"].get(sort.name, 0), 1)
            for sort in ALL.values()
            if sort.poison
        ),
        *((sort.name, seen.get(f"committed, {sort.name}", 0), minimum.each_kind) for sort in KINDS),
        *((point, report["points"].get(point, 0), 1) for point in points),
        *((f"{child} killed", count, 1) for child, count in report["children"].items()),
        *(
            (fault, mishaps.get(fault, 0), least)
            for fault, least in minimum.mishaps.items()
            if fault not in unavailable
        ),
    ]
    return [f"{what}: {count}, not {least}" for what, count, least in counts if count < least]


def _summed(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in counts:
        total.update(each)
    return dict(sorted(total.items()))


def told(report: Mapping[str, Any]) -> str:
    """For a person."""
    found = report["violations"]
    lines = [
        f"seed {report['seed']}, {report['seconds']} s",
        "nothing lost, nothing twice" if not found else f"{len(found)} promises were broken",
        *(f"  BROKEN {kind}: {examples[0]}" for kind, examples in found.items()),
        *(f"  TOO FEW {shortfall}" for shortfall in report["shortfalls"]),
        "",
        *_table("killed by SIGKILL at", report["kills"]),
        *_table("befell servers and network", report["mishaps"]),
        *_table(
            "seen",
            {name: report["seen"].get(name, 0) for name in COUNTED}
            | {"zombies": report["zombies"], "forged messages": report["forged"]},
        ),
        *_table("poison, each dead within its attempts", report["poison"]),
        "recovery, p50 and p99 in seconds",
        *(
            f"  {fault:<62} {times['count']:>6} {times['p50_s']:>8.2f} {times['p99_s']:>8.2f}"
            for fault, times in report["recovery"].items()
        ),
    ]
    for name, grown in report["grown"].items():
        lines += ["", f"growth in the laboratory of {name}: first, last, most"]
        lines += [
            f"  {what:<62} {of['first']:>8} {of['last']:>8} {of['most']:>8}"
            for what, of in grown.items()
        ]
    if report["slow"]:
        lines += ["", "slow to recover, with what befell the system meanwhile (seconds after it)"]
        lines += [f"  {each}" for each in report["slow"]]
    return "\n".join([*lines, *(f"note: {note}" for note in report["notes"])])


def _table(title: str, rows: Mapping[str, int]) -> list[str]:
    return [title, *(f"  {name:<62} {count:>6}" for name, count in rows.items()), ""]
