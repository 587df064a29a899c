"""Compare the producers' history with the database's ledger, without the code under test."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psycopg

from tests.faults import contents
from tests.faults.job_mix import ALL
from tests.faults.ledger_checker import LedgerChecker

WATCHDOG_S: Final = 2.5
"""A worker frozen for longer may be ended by its watchdog before it writes a receipt."""
EVENTS: Final = """SELECT what, subject::text, token::text, detail, version, actor,
  extract(epoch FROM at)::float8 FROM ledger.events ORDER BY n"""


@dataclass(slots=True)
class Verdict:
    """The result of a check.

    Attributes:
        violations: kind to examples.
        counts: of events, for the report.
        requeued: token to the time when its jobs were queued again.
        tokens: token to the time when it was issued.
    """

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    requeued: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)

    def add_violation(self, kind: str, subject: object) -> None:
        """Record a violation."""
        self.violations[kind].append(str(subject))


def check(
    superuser_url: str, history: Iterable[dict[str, Any]], postgres_log: Path | None = None
) -> Verdict:
    """Compare the results that producers received with the effects in the database."""
    verdict = Verdict()
    lines = list(history)
    frozen = {line["token"] for line in _of(lines, "frozen")}
    ledger = LedgerChecker(verdict.add_violation, verdict.counts, _poison(lines), frozen)
    with psycopg.connect(superuser_url) as conn:
        # A server-side cursor: a soak's ledger is long.
        with conn.cursor("ledger") as events:
            for event in events.execute(EVENTS):
                ledger.add(event)
        ledger.finish()
        verdict.tokens, verdict.requeued = ledger.tokens, ledger.requeued
        _check_history(verdict, lines, ledger)
        resumed = {line["pid"]: line["at"] for line in _of(lines, "resumed")}
        gave_up = {line["pid"]: line["at"] for line in _of(lines, "gave up")}
        for line in _of(lines, "frozen"):
            # An overrun within that time was of this batch, a later one of another batch.
            gave_up_s = gave_up.get(line["pid"], 0.0) - line["at"]
            lasted_s = resumed.get(line["pid"], math.inf) - line["at"]
            # If the rescue was later, as on a full disk, the watchdog had ended the worker before.
            rescued_s = ledger.requeued.get(line["token"], math.inf) - line["at"]
            resumed_in_time = (
                max(lasted_s, rescued_s) < WATCHDOG_S and not 0 < gave_up_s < 2 * WATCHDOG_S
            )
            _check_zombie(verdict, line, ledger, resumed_in_time=resumed_in_time)
        contents.check(conn, verdict.add_violation, verdict.counts, lines, ledger.job_documents)
        _add_evidence(conn, verdict, {line["token"]: line["point"] for line in _of(lines, "point")})
    for line in lines:
        verdict.counts[f"history: {line['what']}"] += 1
        if line["what"] == "violation":
            verdict.add_violation(line["detail"], "")
    if postgres_log is not None:
        text = postgres_log.read_text(encoding="utf-8", errors="replace")
        for _ in range(text.count("deadlock detected")):
            verdict.add_violation("two transactions of the system deadlocked", "")
    return verdict


def _of(lines: Iterable[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["what"] == what]


def _poison(lines: Iterable[dict[str, Any]]) -> frozenset[str]:
    return frozenset(
        job
        for line in lines
        if line["what"] in {"committed", "unknown"}
        and line["variant"] in ALL
        and ALL[line["variant"]].poison
        for job in line["jobs"]
    )


def _check_history(
    verdict: Verdict, lines: Iterable[dict[str, Any]], ledger: LedgerChecker
) -> None:
    recorded: set[str] = set()
    for line in lines:
        recorded.update(line["jobs"] if line["what"] in {"committed", "unknown"} else ())
    for job in ledger.enqueued - recorded:
        verdict.add_violation("a job exists that no producer enqueued", job)
    for line in lines:
        match line["what"]:
            case "rolled back":
                verdict.counts["rolled back"] += len(line["jobs"])
                for job in filter(ledger.has_job, line["jobs"]):
                    verdict.add_violation("an enqueue that was rolled back left a job", job)
            case "committed" | "unknown":
                _check_enqueue(verdict, line, ledger)
            case "cancelled":
                for job, state in line["states"].items():
                    if ledger.ends.get(job, state) != state:
                        verdict.add_violation("a job left the state that cancel returned", job)


def _check_enqueue(verdict: Verdict, line: dict[str, Any], ledger: LedgerChecker) -> None:
    outcome = line["what"]
    verdict.counts[outcome] += len(line["jobs"])
    verdict.counts[f"{outcome}, {line['variant']}"] += len(line["jobs"])
    for job in line["jobs"]:
        if ledger.has_job(job):
            end = ledger.ends.get(job)
            if end is not None and end not in line["ends"]:
                verdict.add_violation(f"a job ({line['variant']}) ended {end}", job)
        elif outcome == "committed":
            verdict.add_violation("a committed job is lost: it never existed", job)


def _check_zombie(
    verdict: Verdict, line: dict[str, Any], ledger: LedgerChecker, *, resumed_in_time: bool
) -> None:
    """A worker frozen past its lease has no effect under its token, and its receipt is kept."""
    if line["token"] not in ledger.requeued:
        # After a database outage leases are not rescued for a while: it still held its jobs.
        verdict.counts["frozen, and not rescued"] += 1
        return
    verdict.counts["zombies"] += 1
    for token, job in ledger.stale_effects:
        if token == line["token"]:
            verdict.add_violation("an effect under the token of a frozen worker", job)
    if not resumed_in_time:
        verdict.counts["zombies ended by their watchdog"] += 1
        return
    outcomes = [ledger.zombies.get((line["token"], job)) for job in line["jobs"]]
    verdict.counts["zombies' attempts refused, receipts kept"] += outcomes.count("refused")
    if set(outcomes) != {"refused"}:
        verdict.add_violation(
            f"a refused attempt has no receipt ({set(outcomes)})", line["jobs"][0]
        )


def _add_evidence(
    conn: psycopg.Connection[Any], verdict: Verdict, points: dict[str | None, str]
) -> None:
    """Add the job's row and its ledger to the first example of each kind."""
    for examples in verdict.violations.values():
        subject = examples[0]
        row = conn.execute(
            """SELECT to_jsonb(j) FROM (SELECT state, attempt, crashes, quarantined, start_tag, run_at,
                 error_code, error_message, lane, lease_id, finished_at, parent_id, root_id
               FROM vestry.jobs WHERE id::text = %s) j""",
            [subject],
        ).fetchone()
        events = conn.execute(
            """SELECT to_char(at, 'MI:SS.MS') || ' ' || what || ' ' || coalesce(detail, '') || ' by '
                      || actor, token::text
               FROM ledger.events WHERE subject::text = %s ORDER BY n""",
            [subject],
        ).fetchall()
        if row is not None:
            examples.insert(0, str(row[0]))
        examples.insert(
            0, "; ".join(f"{text} ({points.get(token, '-')})" for text, token in events)
        )
