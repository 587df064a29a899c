"""Reads both histories and says what is wrong. It knows the promise and none of the code."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg

TERMINAL = frozenset({"succeeded", "dead", "cancelled", "expired", "superseded"})


@dataclass(slots=True)
class Verdict:
    """What was found.

    Attributes:
        violations: what breaks the promise, each by its kind with an example.
        counts: what was seen, for the report.
    """

    violations: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def blame(self, kind: str, subject: object) -> None:
        """Note a violation."""
        self.violations[kind].append(str(subject))


def check(superuser_url: str, history: Iterable[dict[str, Any]]) -> Verdict:
    """Compare what producers were promised with what the database was seen to do."""
    verdict = Verdict()
    lines = list(history)
    with psycopg.connect(superuser_url, autocommit=True) as conn:
        events = conn.execute(
            "SELECT what, subject::text, token::text, told, version FROM ledger.events ORDER BY n"
        ).fetchall()
        states = dict(conn.execute("SELECT id::text, state FROM vestry.jobs").fetchall())
        refused = {
            (row[0], row[1])
            for row in conn.execute(
                "SELECT job_id::text, lease_id::text FROM vestry.receipts WHERE outcome = 'refused'"
            )
        }
        watch = _Watch(verdict)
        for event in events:
            watch.see(event)
        _check_promises(verdict, lines, events, states)
        for line in lines:
            if line["what"] == "frozen":
                _check_zombie(verdict, line, events, refused)
        _explain(
            conn,
            verdict,
            {line["token"]: line["point"] for line in lines if line["what"] == "point"},
        )
    return verdict


def _explain(
    conn: psycopg.Connection[Any], verdict: Verdict, points: dict[str | None, str]
) -> None:
    """Add to the first of each kind what the job's row and the ledger say of it."""
    for found in verdict.violations.values():
        row = conn.execute(
            """SELECT to_jsonb(j) FROM (SELECT state, attempt, crashes, suspect, turn, run_at,
                 error_code, error_message, lane, lease_id, finished_at
               FROM vestry.jobs WHERE id::text = %s) j""",
            [found[0]],
        ).fetchone()
        if row is not None:
            found.insert(0, str(row[0]))
        story = conn.execute(
            """SELECT to_char(at, 'MI:SS.MS') || ' ' || what || ' ' || coalesce(told, ''), token::text
               FROM ledger.events WHERE subject::text = %s ORDER BY n""",
            [found[-1] if row is None else found[1]],
        ).fetchall()
        told = (f"{line[0]} ({points.get(line[1], 'no point')})" for line in story)
        found.insert(0, "; ".join(told))


class _Watch:
    """Follows the database's ledger, event by event, in the order of its writing."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict
        self._tokens: set[str] = set()
        self._held: dict[str, str | None] = {}
        self._times: Counter[tuple[str, str, int]] = Counter()

    def see(self, event: tuple[Any, ...]) -> None:
        """One event."""
        what, subject, token, told, version = event
        self._verdict.counts[what] += 1
        match what:
            case "token":
                if token in self._tokens:
                    self._verdict.blame("a token was issued twice", token)
                self._tokens.add(token)
            case "moved":
                self._moved(subject, token, *told.split(">"))
            case "result":
                self._once("a job's result was committed more than once", subject)
                if told != "running" or token is None or token != self._held.get(subject):
                    self._verdict.blame("a result of somebody who did not hold the job", subject)
            case "indexed":
                self._once("a document's generation was indexed more than once", subject, version)

    def _moved(self, job: str, token: str | None, before: str, after: str) -> None:
        if after == "running":
            self._held[job] = token
        elif before == "running" and token != self._held.get(job):
            self._verdict.blame("a job was moved under a stale token", job)
        if before in TERMINAL:
            self._verdict.blame("a job left a final state", job)
        if after in TERMINAL:
            self._verdict.counts[after] += 1
            self._once("a job ended more than once", job)

    def _once(self, fault: str, subject: str, version: int = 0) -> None:
        self._times[fault, subject, version] += 1
        if self._times[fault, subject, version] > 1:
            self._verdict.blame(fault, subject)


def _check_promises(
    verdict: Verdict,
    lines: list[dict[str, Any]],
    events: list[tuple[Any, ...]],
    states: dict[str, str],
) -> None:
    ended = {e[1]: e[3].split(">")[1] for e in events if e[0] == "moved" and _final(e[3])}
    with_result = {e[1] for e in events if e[0] == "result"}
    known = {e[1] for e in events if e[0] == "enqueued"} | states.keys()
    for line in lines:
        if line["what"] == "rolled back":
            verdict.counts["rolled back"] += len(line["jobs"])
            for job in known.intersection(line["jobs"]):
                verdict.blame("an enqueue that was rolled back left a job", job)
        if line["what"] == "committed":
            verdict.counts["committed"] += len(line["jobs"])
            verdict.counts[f"committed, {line['sort']}"] += len(line["jobs"])
            for job in line["jobs"]:
                fault = _broken(line, ended.get(job), has_result=job in with_result)
                if fault is not None:
                    verdict.blame(fault, job)


def _broken(line: dict[str, Any], end: str | None, *, has_result: bool) -> str | None:
    """What is wrong with how a committed job ended."""
    if end is None:
        return "a committed job is lost: it never ended"
    if end not in line["ends"]:
        return f"a job ({line['sort']}) ended {end}"
    if (end == "succeeded") != has_result:
        return "a job has a result without having succeeded, or none though it has"
    return None


def _check_zombie(
    verdict: Verdict,
    line: dict[str, Any],
    events: list[tuple[Any, ...]],
    refused: set[tuple[str, str]],
) -> None:
    """A worker that was frozen past its lease: nothing under its token, and its receipt kept."""
    verdict.counts["zombies"] += 1
    late = [
        e
        for e in events
        if e[2] == line["token"] and (e[0] == "result" or (e[0] == "moved" and _final(e[3])))
    ]
    for event in late:
        verdict.blame("an effect under the token of a frozen worker", event[1])
    if line.get("resumed", True):
        kept = sum((job, line["token"]) in refused for job in line["jobs"])
        verdict.counts["zombies' attempts refused, receipts kept"] += kept
        if kept != len(line["jobs"]):
            verdict.blame("a refused attempt has no receipt", line["token"])


def _final(told: str) -> bool:
    return told.split(">")[1] in TERMINAL
