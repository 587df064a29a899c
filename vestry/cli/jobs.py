"""`vestry status`, `wait`, `result` and `cancel`."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client, transaction
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.options import JsonOption, TimeoutOption
from vestry.cli.output import Output, duration, table
from vestry.cli.rerun import list_degraded
from vestry.cli.results import answer, read_outcome
from vestry.db.job_queries import job_id
from vestry.errors import WaitTimeout
from vestry.jobs.results import JobStatus, State

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status", rich_help_panel="Jobs")(status)
    app.command("wait", rich_help_panel="Jobs")(wait)
    app.command("result", rich_help_panel="Jobs")(result)
    app.command("cancel", rich_help_panel="Jobs")(cancel)


def status(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="A job's id. Without: all lanes.")
    ] = None,
    degraded: Annotated[
        bool,
        typer.Option(
            "--degraded", help="List results that another model gave than the one intended."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show where a job stands, or without one how many jobs of each lane are in which state."""
    out = Output(as_json=as_json)
    with open_client() as vestry:
        if degraded:
            list_degraded(vestry, out)
            return
        if job is None:
            overview(out)
            return
        found = vestry.status(job)
        flow = vestry.flow(job) if found.root is not None else []
    document = _status_document(found)
    if flow:
        document["flow"] = [_flow_document(one) for one in flow]
    out.emit(document, lambda console: _show_status(console, found, flow))


def wait(job: JobArgument, timeout: TimeoutOption = None, as_json: JsonOption = False) -> None:
    """Wait until a job is done, and print its result.

    Exit code 1 where the job failed, 4 where the time was over; the job then goes on.
    """
    out = Output(as_json=as_json)
    with open_client() as vestry:
        try:
            outcome = read_outcome(vestry, job, wait=True, timeout=timeout)
        except WaitTimeout as error:
            raise CommandError(
                "wait_timeout", str(error), ExitCode.TIMEOUT, **_unfinished(vestry.status(job))
            ) from None
        except KeyboardInterrupt:
            raise CommandError(
                "interrupted",
                f"Interrupted. The job goes on: `vestry wait {job}` waits for it again.",
                ExitCode.INTERRUPTED,
                job=job,
            ) from None
    answer(out, outcome)


def result(job: JobArgument, as_json: JsonOption = False) -> None:
    """Print a finished job's result. Exit code 4 where it is not finished yet, 1 where it failed."""
    out = Output(as_json=as_json)
    with open_client() as vestry:
        found = vestry.status(job)
        if not found.finished:
            raise CommandError(
                "not_finished",
                f"The job is {found.state}; `vestry wait {job}` waits for it.",
                ExitCode.TIMEOUT,
                **_unfinished(found),
            )
        outcome = read_outcome(vestry, job, wait=False)
    answer(out, outcome)


def cancel(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="The jobs' ids.")],
    as_json: JsonOption = False,
) -> None:
    """Cancel jobs, queued or running. One that is finished stays what it is."""
    with open_client() as vestry:
        states = vestry.cancel(jobs)
    rows = [{"job": str(job), "state": state} for job, state in states.items()]
    unknown = sorted({name for name in jobs if job_id(name) not in states})
    document: dict[str, Any] = {"jobs": rows, "unknown": unknown}

    def human(console: Console) -> None:
        listed = [(row["job"], row["state"]) for row in rows] + [
            (job, "unknown") for job in unknown
        ]
        console.print(table(("job", "state"), listed))

    Output(as_json=as_json).emit(document, human)
    if unknown:
        raise typer.Exit(ExitCode.USAGE)


def _unfinished(found: JobStatus) -> dict[str, Any]:
    return {"job": str(found.job), "kind": found.kind, "state": found.state, "result": None}


def _status_document(found: JobStatus) -> dict[str, Any]:
    error = None if found.error is None else {"code": found.error[0], "message": found.error[1]}
    return {
        "job": str(found.job),
        "kind": found.kind,
        "state": found.state,
        "owner": found.owner,
        "privacy": found.privacy,
        "latency": found.latency,
        "lane": found.lane,
        "attempt": found.attempt,
        "degraded": found.degraded,
        "error": error,
        "created_at": found.created_at.isoformat(),
        "run_at": found.run_at.isoformat(),
        "started_at": found.started_at and found.started_at.isoformat(),
        "finished_at": found.finished_at and found.finished_at.isoformat(),
    }


def _flow_document(found: JobStatus) -> dict[str, Any]:
    return {
        "job": str(found.job),
        "follows": found.parent and str(found.parent),
        "kind": found.kind,
        "state": found.state,
        "lane": found.lane,
        "attempt": found.attempt,
    }


def _show_flow(console: Console, flow: list[JobStatus]) -> None:
    """The jobs of a flow, each indented below the one it follows on."""
    depth: dict[UUID | None, int] = {None: -1}
    rows = []
    for found in flow:
        depth[found.job] = depth.get(found.parent, -1) + 1
        rows.append(
            (
                "  " * depth[found.job] + found.kind,
                Text(found.state, style=STYLES.get(found.state, "")),
                found.lane,
                str(found.job),
                "" if found.error is None else found.error[0],
            )
        )
    console.print(table(("flow", "state", "lane", "job", "error"), rows))


def _show_status(console: Console, found: JobStatus, flow: list[JobStatus]) -> None:
    rows: list[tuple[str, object]] = [
        ("job", str(found.job)),
        ("kind", found.kind),
        ("state", Text(found.state, style=STYLES.get(found.state, ""))),
        ("owner", found.owner),
        ("lane", found.lane),
        ("attempt", found.attempt),
        ("degraded", found.degraded),
    ]
    if found.error is not None:
        rows.append(("last error", f"{found.error[0]}: {found.error[1]}"))
    if found.started_at is not None:
        waited = (found.started_at - found.created_at).total_seconds()
        rows.append(("waited", duration(max(waited, 0.0))))
        if found.finished_at is not None:
            ran = (found.finished_at - found.started_at).total_seconds()
            rows.append(("ran", duration(max(ran, 0.0))))
    console.print(table(("", ""), rows))
    if flow:
        console.print()
        _show_flow(console, flow)


STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "dead": "bold red",
    "cancelled": "yellow",
    "expired": "yellow",
    "superseded": "yellow",
}
"""How a state is coloured; the others are not."""


# `vestry status` without a job: how many jobs of each lane are in which state.

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
        shown = [state for state in State if any(state in lane["states"] for lane in found)]
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
