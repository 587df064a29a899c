"""`vestry status`, `wait`, `result` and `cancel`: one job, its flow, or the jobs of every lane."""

from __future__ import annotations

from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.console import Console
from rich.text import Text

from vestry.cli.connections import open_client, transaction
from vestry.cli.errors import CommandError, ExitCode
from vestry.cli.options import JsonOption, TimeoutOption
from vestry.cli.output import Output, duration, table
from vestry.cli.rerun import list_degraded
from vestry.cli.results import print_outcome, read_outcome
from vestry.db.job_queries import job_id
from vestry.errors import WaitTimeout
from vestry.jobs.results import JobStatus, State

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]

STATE_STYLES: Final = {
    "succeeded": "green",
    "running": "cyan",
    "dead": "bold red",
    "cancelled": "yellow",
    "expired": "yellow",
    "superseded": "yellow",
}
"""Colours of states; the others have none."""

_OVERVIEW: Final = """
SELECT lane, state, count(*),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY
         extract(epoch FROM started_at - greatest(created_at, run_at))::float8),
       percentile_cont(0.5) WITHIN GROUP (ORDER BY
         extract(epoch FROM finished_at - started_at)::float8)
FROM vestry.jobs GROUP BY lane, state ORDER BY lane, state"""


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("status", rich_help_panel="Jobs")(status)
    app.command("wait", rich_help_panel="Jobs")(wait)
    app.command("result", rich_help_panel="Jobs")(result)
    app.command("cancel", rich_help_panel="Jobs")(cancel)


def status(
    job: Annotated[
        str | None, typer.Argument(metavar="[JOB]", help="The job's id. Default: all lanes.")
    ] = None,
    degraded: Annotated[
        bool,
        typer.Option("--degraded", help="List results of another model than the intended one."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a job's state or, without a job, the number of jobs per lane and state."""
    out = Output(as_json=as_json)
    with open_client() as vestry:
        if degraded:
            list_degraded(vestry, out)
            return
        if job is None:
            _print_overview(out)
            return
        current = vestry.status(job)
        flow = vestry.flow(job) if current.root is not None else []
    document = _status_document(current)
    if flow:
        document["flow"] = [_flow_document(member) for member in flow]
    out.emit(document, lambda console: _print_status(console, current, flow))


def wait(job: JobArgument, timeout: TimeoutOption = None, as_json: JsonOption = False) -> None:
    """Wait until a job is finished, and print its result.

    Exit code 1 if the job failed, 4 if the timeout passed first; the job then continues.
    """
    out = Output(as_json=as_json)
    with open_client() as vestry:
        try:
            outcome = read_outcome(vestry, job, wait=True, timeout=timeout)
        except WaitTimeout as error:
            raise CommandError(
                "wait_timeout",
                str(error),
                ExitCode.TIMEOUT,
                **_unfinished_fields(vestry.status(job)),
            ) from None
        except KeyboardInterrupt:
            raise CommandError(
                "interrupted",
                f"Interrupted. The job continues; `vestry wait {job}` waits for it again.",
                ExitCode.INTERRUPTED,
                job=job,
            ) from None
    print_outcome(out, outcome)


def result(job: JobArgument, as_json: JsonOption = False) -> None:
    """Print a finished job's result. Exit code 4 if it is not finished, 1 if it failed."""
    out = Output(as_json=as_json)
    with open_client() as vestry:
        current = vestry.status(job)
        if not current.finished:
            raise CommandError(
                "not_finished",
                f"The job is {current.state}; `vestry wait {job}` waits for it.",
                ExitCode.TIMEOUT,
                **_unfinished_fields(current),
            )
        outcome = read_outcome(vestry, job, wait=False)
    print_outcome(out, outcome)


def cancel(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB…", help="The jobs' ids.")],
    as_json: JsonOption = False,
) -> None:
    """Cancel waiting, queued or running jobs. A finished job keeps its state."""
    with open_client() as vestry:
        states = vestry.cancel(jobs)
    rows = [{"job": str(job), "state": state} for job, state in states.items()]
    unknown = sorted({name for name in jobs if job_id(name) not in states})
    document: dict[str, Any] = {"jobs": rows, "unknown": unknown}

    def print_text(console: Console) -> None:
        cells = [(row["job"], row["state"]) for row in rows]
        cells += [(job, "unknown") for job in unknown]
        console.print(table(("job", "state"), cells))

    Output(as_json=as_json).emit(document, print_text)
    if unknown:
        raise typer.Exit(ExitCode.USAGE)


def _unfinished_fields(current: JobStatus) -> dict[str, Any]:
    return {
        "job": str(current.job),
        "kind": current.kind,
        "state": current.state,
        "result": None,
    }


def _status_document(current: JobStatus) -> dict[str, Any]:
    error = current.error and {"code": current.error[0], "message": current.error[1]}
    return {
        "job": str(current.job),
        "kind": current.kind,
        "state": current.state,
        "owner": current.owner,
        "privacy": current.privacy,
        "latency": current.latency,
        "lane": current.lane,
        "attempt": current.attempt,
        "degraded": current.degraded,
        "error": error,
        "created_at": current.created_at.isoformat(),
        "run_at": current.run_at.isoformat(),
        "started_at": current.started_at and current.started_at.isoformat(),
        "finished_at": current.finished_at and current.finished_at.isoformat(),
    }


def _flow_document(member: JobStatus) -> dict[str, Any]:
    return {
        "job": str(member.job),
        "follows": member.parent and str(member.parent),
        "kind": member.kind,
        "state": member.state,
        "lane": member.lane,
        "attempt": member.attempt,
    }


def _print_status(console: Console, current: JobStatus, flow: list[JobStatus]) -> None:
    rows: list[tuple[str, object]] = [
        ("job", str(current.job)),
        ("kind", current.kind),
        ("state", _state_cell(current.state)),
        ("owner", current.owner),
        ("lane", current.lane),
        ("attempt", current.attempt),
        ("degraded", current.degraded),
    ]
    if current.error is not None:
        rows.append(("last error", f"{current.error[0]}: {current.error[1]}"))
    if current.started_at is not None:
        waited = (current.started_at - current.created_at).total_seconds()
        rows.append(("waited", duration(max(waited, 0.0))))
        if current.finished_at is not None:
            ran = (current.finished_at - current.started_at).total_seconds()
            rows.append(("ran", duration(max(ran, 0.0))))
    console.print(table(("", ""), rows))
    if flow:
        console.print()
        _print_flow(console, flow)


def _print_flow(console: Console, flow: list[JobStatus]) -> None:
    """The jobs of a flow, each indented below its parent."""
    depth: dict[UUID | None, int] = {None: -1}
    rows = []
    for member in flow:
        depth[member.job] = depth.get(member.parent, -1) + 1
        rows.append(
            (
                "  " * depth[member.job] + member.kind,
                _state_cell(member.state),
                member.lane,
                str(member.job),
                "" if member.error is None else member.error[0],
            )
        )
    console.print(table(("flow", "state", "lane", "job", "error"), rows))


def _state_cell(state: str) -> Text:
    return Text(state, style=STATE_STYLES.get(state, ""))


def _print_overview(out: Output) -> None:
    """Number of jobs per lane and state, with median waiting and running times."""
    with transaction() as conn:
        rows = conn.execute(_OVERVIEW).fetchall()
    by_lane: dict[str, dict[str, Any]] = {}
    for lane, state, count, wait_s, run_s in rows:
        entry = by_lane.setdefault(
            lane, {"lane": lane, "states": {}, "wait_p50_s": None, "run_p50_s": None}
        )
        entry["states"][state] = count
        if state == "succeeded":
            entry |= {"wait_p50_s": wait_s, "run_p50_s": run_s}
    lanes = list(by_lane.values())

    def print_text(console: Console) -> None:
        if not lanes:
            console.print("No jobs.")
            return
        states = [state for state in State if any(state in lane["states"] for lane in lanes)]
        columns = ("lane", *(f"#{state}" for state in states), "#median wait", "#median run")
        cells = (
            (
                lane["lane"],
                *(lane["states"].get(state) for state in states),
                duration(lane["wait_p50_s"]),
                duration(lane["run_p50_s"]),
            )
            for lane in lanes
        )
        console.print(table(columns, cells))

    out.emit({"lanes": lanes}, print_text)
