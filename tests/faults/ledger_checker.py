"""Check the database's ledger event by event."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

TERMINAL: Final = frozenset({"succeeded", "dead", "cancelled", "expired", "superseded"})
RECONCILER: Final = "vestry-reconciler"
BY_WORKER: Final = frozenset({"succeeded", "superseded"})
"""Final states that only the worker that holds the job can cause."""
MAX_ATTEMPTS: Final = 5
EXCLUSIVE_CRASHES: Final = 2
CRASHED: Final = "lost in exclusive runs"
ANSWERED: Final = "answered"
ReportViolation = Callable[[str, object], None]


class LedgerChecker:
    """Checks events in the order in which they were written.

    Args:
        violation: called with the kind and the subject of a violation.
        counts: counts events by their kinds.
        poison: jobs whose attempts are limited.
        frozen: tokens of workers that were frozen past their lease.

    Attributes:
        enqueued: jobs that are no replays.
        ends: job to its final state.
        tokens: token to the time when it was issued.
        requeued: token to the time when its jobs were queued again.
        job_documents: (job, position of the document in it) to the document.
        zombies: (frozen token, job) to the outcome of its latest receipt.
        stale_effects: (frozen token, job) of each effect under a frozen token.
    """

    def __init__(
        self,
        violation: ReportViolation,
        counts: Counter[str],
        poison: frozenset[str],
        frozen: set[str],
    ) -> None:
        self._violation = violation
        self._counts = counts
        self._poison = poison
        self._frozen = frozen
        self._workers: dict[str, str] = {}
        self._exclusive: set[str] = set()
        self._held: dict[str, str | None] = {}
        self._parents: dict[str, str | None] = {}
        self._results: set[str] = set()
        self._indexed: set[tuple[str, int]] = set()
        self._attempts: Counter[tuple[str, str]] = Counter()
        self.enqueued: set[str] = set()
        self.ends: dict[str, str] = {}
        self.tokens: dict[str, float] = {}
        self.requeued: dict[str, float] = {}
        self.job_documents: dict[tuple[str, int], str] = {}
        self.zombies: dict[tuple[str, str], str] = {}
        self.stale_effects: list[tuple[str, str]] = []

    def add(self, event: Sequence[Any]) -> None:
        """Check one event."""
        what, subject, token, detail, version, actor, at = event
        self._counts[what] += 1
        match what:
            case "enqueued":
                self._parents[subject] = token
                if not version:
                    self.enqueued.add(subject)
            case "token":
                self._check_token(token, detail, at, exclusive=bool(version))
            case "moved":
                before, after = detail.split(">")
                self._check_transition(subject, token, (before, after), actor)
                self._record_rescue(token, (before, after), actor, at)
            case "result":
                self._check_result(subject, token, detail)
            case "receipt":
                self._record_receipt(subject, token, detail)
            case "job_document":
                self.job_documents[token, version] = subject
            case "indexed":
                if (subject, version) in self._indexed:
                    self._violation("a document's generation was indexed more than once", subject)
                self._indexed.add((subject, version))

    def finish(self) -> None:
        """Check the rules that require every event."""
        for job in self._parents.keys() - self.ends.keys():
            self._violation("a committed job is lost: it never ended", job)
        for (job, outcome), times in self._attempts.items():
            if times > (EXCLUSIVE_CRASHES if outcome == CRASHED else MAX_ATTEMPTS):
                self._violation(f"a poison job had more attempts than allowed ({outcome})", job)
        for job, end in self.ends.items():
            if (end == "succeeded") != (job in self._results):
                self._violation("a result without success, or a success without result", job)
        self._counts.update(f"ended {end}" for end in self.ends.values())

    def has_job(self, job: str) -> bool:
        """Whether a job ever existed."""
        return job in self._parents

    def _check_token(self, token: str, worker: str, at: float, *, exclusive: bool) -> None:
        if token in self._workers:
            self._violation("a token was issued twice", token)
        self._workers[token] = worker
        self.tokens[token] = at
        if exclusive:
            self._exclusive.add(token)

    def _check_transition(
        self, job: str, token: str | None, move: tuple[str, str], actor: str
    ) -> None:
        before, after = move
        if after == "running":
            self._held[job] = token
            parent = self._parents.get(job)
            if parent is not None and self.ends.get(parent) != "succeeded":
                self._violation("a job ran before its parent had succeeded", job)
        elif before == "running" and token != self._held.get(job):
            self._violation("a job was moved under a stale token", job)
        if after in BY_WORKER and not actor.startswith(f"vestry-{self._workers.get(token or '')}"):
            self._violation("a job was finished by a worker that did not hold it", job)
        if before in TERMINAL:
            self._violation("a job left a final state", job)
        if after in TERMINAL:
            if job in self.ends:
                self._violation("a job ended more than once", job)
            self.ends[job] = after
            if token in self._frozen and after in BY_WORKER:
                self.stale_effects.append((str(token), job))

    def _record_rescue(
        self, token: str | None, move: tuple[str, str], actor: str, at: float
    ) -> None:
        """Record a rescue by the reconciler, not a worker's retry; the last job of a batch counts."""
        before, after = move
        if before == "running" and after in {"queued", "dead"} and actor.startswith(RECONCILER):
            self.requeued[str(token)] = at

    def _check_result(self, job: str, token: str | None, state: str) -> None:
        if job in self._results:
            self._violation("a job's result was committed more than once", job)
        self._results.add(job)
        if state != "running" or token is None or token != self._held.get(job):
            self._violation("a result was committed by a worker that did not hold the job", job)
        if token in self._frozen:
            self.stale_effects.append((str(token), job))

    def _record_receipt(self, job: str, token: str, outcome: str) -> None:
        self._counts[f"receipt: {outcome}"] += 1
        if token in self._frozen:
            self.zombies[token, job] = outcome
        if job not in self._poison:
            return
        if outcome in {"retry", "dead"}:
            self._attempts[job, ANSWERED] += 1
        elif outcome == "lost" and token in self._exclusive:
            self._attempts[job, CRASHED] += 1
