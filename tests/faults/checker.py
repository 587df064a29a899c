"""Reads both histories and says what is wrong. It knows the promise and none of the code."""

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
from tests.faults.ledger_checker import Watch

WATCHDOG_S: Final = 2.5
"""A worker that was frozen for longer may be ended by its own watchdog before it can say anything."""
EVENTS: Final = """SELECT what, subject::text, token::text, told, version, actor,
  extract(epoch FROM at)::float8 FROM ledger.events ORDER BY n"""


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        violations: what breaks the promise, each by its kind with examples.
        counts: what was seen, for the report.
        returned: for each token whose jobs were given to others, when they stood in line again.
        tokens: when each token was issued.
    """

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)
    returned: dict[str, float] = field(default_factory=dict)
    tokens: dict[str, float] = field(default_factory=dict)

    def blame(self, kind: str, subject: object) -> None:
        """Note a violation."""
        self.violations[kind].append(str(subject))


def check(
    superuser_url: str, history: Iterable[dict[str, Any]], postgres_log: Path | None = None
) -> Verdict:
    """Compare what producers were promised with what the database was seen to do."""
    verdict = Verdict()
    lines = list(history)
    frozen = {line["token"] for line in _of(lines, "frozen")}
    watch = Watch(verdict.blame, verdict.counts, _poison(lines), frozen)
    with psycopg.connect(superuser_url) as conn:
        # A cursor of the server's: a soak's ledger is long.
        with conn.cursor("ledger") as events:
            for event in events.execute(EVENTS):
                watch.see(event)
        watch.end()
        verdict.tokens, verdict.returned = watch.tokens, watch.returned
        _check_promises(verdict, lines, watch)
        resumed = {line["pid"]: line["at"] for line in _of(lines, "resumed")}
        gave_up = {line["pid"]: line["at"] for line in _of(lines, "gave up")}
        for line in _of(lines, "frozen"):
            # Well within that time it gave up this batch; later, another.
            gave_up_s = gave_up.get(line["pid"], 0.0) - line["at"]
            lasted_s = resumed.get(line["pid"], math.inf) - line["at"]
            # Rescued later than that, with the disk full for instance, it had given up before.
            rescued_s = watch.returned.get(line["token"], math.inf) - line["at"]
            came_back = max(lasted_s, rescued_s) < WATCHDOG_S and not 0 < gave_up_s < 2 * WATCHDOG_S
            _check_zombie(verdict, line, watch, came_back=came_back)
        contents.check(conn, verdict.blame, verdict.counts, lines, watch.wanted)
        _explain(conn, verdict, {line["token"]: line["point"] for line in _of(lines, "point")})
    for line in lines:
        verdict.counts[f"history: {line['what']}"] += 1
        if line["what"] == "violation":
            verdict.blame(line["told"], "")
    if postgres_log is not None:
        text = postgres_log.read_text(encoding="utf-8", errors="replace")
        for _ in range(text.count("deadlock detected")):
            verdict.blame("two transactions of the system's waited for each other", "")
    return verdict


def _of(lines: Iterable[dict[str, Any]], what: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["what"] == what]


def _poison(lines: Iterable[dict[str, Any]]) -> frozenset[str]:
    return frozenset(
        job
        for line in lines
        if line["what"] in {"committed", "unknown"}
        and line["sort"] in ALL
        and ALL[line["sort"]].poison
        for job in line["jobs"]
    )


def _check_promises(verdict: Verdict, lines: Iterable[dict[str, Any]], watch: Watch) -> None:
    named: set[str] = set()
    for line in lines:
        named.update(line["jobs"] if line["what"] in {"committed", "unknown"} else ())
    for job in watch.enqueued - named:
        verdict.blame("a job is there that nobody enqueued", job)
    for line in lines:
        match line["what"]:
            case "rolled back":
                verdict.counts["rolled back"] += len(line["jobs"])
                for job in filter(watch.knows, line["jobs"]):
                    verdict.blame("an enqueue that was rolled back left a job", job)
            case "committed" | "unknown":
                _check_promise(verdict, line, watch)
            case "cancelled":
                for job, told in line["states"].items():
                    if watch.ends.get(job, told) != told:
                        verdict.blame("a job did not stay what its caller was told", job)


def _check_promise(verdict: Verdict, line: dict[str, Any], watch: Watch) -> None:
    what = line["what"]
    verdict.counts[what] += len(line["jobs"])
    verdict.counts[f"{what}, {line['sort']}"] += len(line["jobs"])
    for job in line["jobs"]:
        if watch.knows(job):
            end = watch.ends.get(job)
            if end is not None and end not in line["ends"]:
                verdict.blame(f"a job ({line['sort']}) ended {end}", job)
        elif what == "committed":
            verdict.blame("a committed job is lost: it was never there", job)


def _check_zombie(verdict: Verdict, line: dict[str, Any], watch: Watch, *, came_back: bool) -> None:
    """A worker that was frozen past its lease: nothing under its token, and its receipt kept."""
    if line["token"] not in watch.returned:
        # After an outage of the database leases are left alone for a while: it still held its jobs.
        verdict.counts["frozen, and not rescued"] += 1
        return
    verdict.counts["zombies"] += 1
    for token, job in watch.late:
        if token == line["token"]:
            verdict.blame("an effect under the token of a frozen worker", job)
    if not came_back:
        verdict.counts["zombies that their own watchdog ended"] += 1
        return
    outcomes = [watch.zombies.get((line["token"], job)) for job in line["jobs"]]
    verdict.counts["zombies' attempts refused, receipts kept"] += outcomes.count("refused")
    if set(outcomes) != {"refused"}:
        verdict.blame(f"a refused attempt has no receipt ({set(outcomes)})", line["jobs"][0])


def _explain(
    conn: psycopg.Connection[Any], verdict: Verdict, points: dict[str | None, str]
) -> None:
    """Add to the first of each kind what the job's row and the ledger say of it."""
    for found in verdict.violations.values():
        subject = found[0]
        row = conn.execute(
            """SELECT to_jsonb(j) FROM (SELECT state, attempt, crashes, suspect, turn, run_at,
                 error_code, error_message, lane, lease_id, finished_at, parent_id, root_id
               FROM vestry.jobs WHERE id::text = %s) j""",
            [subject],
        ).fetchone()
        story = conn.execute(
            """SELECT to_char(at, 'MI:SS.MS') || ' ' || what || ' ' || coalesce(told, '') || ' by '
                      || actor, token::text
               FROM ledger.events WHERE subject::text = %s ORDER BY n""",
            [subject],
        ).fetchall()
        if row is not None:
            found.insert(0, str(row[0]))
        found.insert(0, "; ".join(f"{told} ({points.get(token, '-')})" for told, token in story))
