"""`vestry status` without a job: how many jobs of each lane are in which state."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from vestry.cli.output import Output, duration, table
from vestry.cli.session import transaction

STATES = (
    "waiting",
    "queued",
    "running",
    "succeeded",
    "dead",
    "cancelled",
    "expired",
    "superseded",
)

_OVERVIEW = """
SELECT lane, state, count(*),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY
         extract(epoch FROM started_at - greatest(created_at, run_at))::float8),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY
         extract(epoch FROM finished_at - started_at)::float8)
FROM vestry.jobs GROUP BY lane, state ORDER BY lane, state"""


def overview(out: Output) -> None:
    """Print the states of all jobs still on record, by lane."""
    with transaction() as conn:
        rows = conn.execute(_OVERVIEW).fetchall()
    lanes: dict[str, dict[str, Any]] = {}
    for lane, state, count, wait_s, run_s in rows:
        entry = lanes.setdefault(
            lane, {"lane": lane, "states": {}, "wait_p50_s": None, "run_p50_s": None}
        )
        entry["states"][state] = count
        if state == "succeeded":
            entry |= {"wait_p50_s": wait_s, "run_p50_s": run_s}
    found = list(lanes.values())

    def human(console: Console) -> None:
        if not found:
            console.print("No jobs.")
            return
        shown = [state for state in STATES if any(state in lane["states"] for lane in found)]
        columns = ("lane", *(f"#{state}" for state in shown), "#median wait", "#median run")
        console.print(
            table(
                columns,
                (
                    (
                        lane["lane"],
                        *(lane["states"].get(state) for state in shown),
                        duration(lane["wait_p50_s"]),
                        duration(lane["run_p50_s"]),
                    )
                    for lane in found
                ),
            )
        )

    out.emit({"lanes": found}, human)
