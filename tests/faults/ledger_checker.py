"""Follows the database's ledger, event by event: the rules that hold at every moment."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

TERMINAL: Final = frozenset({"succeeded", "dead", "cancelled", "expired", "superseded"})
RECONCILER: Final = "vestry-reconciler"
BY_WORKER: Final = frozenset({"succeeded", "superseded"})
"""Ends that only the worker which holds a job can bring about."""
MAX_ATTEMPTS: Final = 5
ALONE_CRASHES: Final = 2
Blame = Callable[[str, object], None]


class Watch:
    """Takes events in the order of their writing.

    Args:
        blame: takes violations.
        counts: takes what was seen.
        poison: jobs whose attempts are counted.
        frozen: tokens of workers that were frozen past their lease.
    """

    def __init__(
        self, blame: Blame, counts: Counter[str], poison: frozenset[str], frozen: set[str]
    ) -> None:
        self._blame = blame
        self._counts = counts
        self._poison = poison
        self._frozen = frozen
        self._workers: dict[str, str] = {}
        self._alone: set[str] = set()
        self._held: dict[str, str | None] = {}
        self._parents: dict[str, str | None] = {}
        self._results: set[str] = set()
        self._indexed: set[tuple[str, int]] = set()
        self._attempts: Counter[tuple[str, str]] = Counter()
        self.enqueued: set[str] = set()
        """Jobs that are no replays."""
        self.ends: dict[str, str] = {}
        self.tokens: dict[str, float] = {}
        """Each token, and when it was issued."""
        self.returned: dict[str, float] = {}
        """Of each token whose jobs were given to others, when they stood in line again."""
        self.wanted: dict[tuple[str, int], str] = {}
        """(job, place of the document in it) to the document."""
        self.zombies: dict[tuple[str, str], str] = {}
        """(frozen token, job) to the outcome of its latest receipt."""
        self.late: list[tuple[str, str]] = []
        """(frozen token, job) of effects under it."""

    def see(self, event: Sequence[Any]) -> None:
        """One event."""
        what, subject, token, told, version, actor, at = event
        self._counts[what] += 1
        match what:
            case "enqueued":
                self._parents[subject] = token
                if not version:
                    self.enqueued.add(subject)
            case "token":
                self._issued(token, told, at, alone=bool(version))
            case "moved":
                before, after = told.split(">")
                self._moved(subject, token, (before, after), actor)
                self._rescued(token, (before, after), actor, at)
            case "result":
                self._result(subject, token, told)
            case "receipt":
                self._receipt(subject, token, told)
            case "wanted":
                self.wanted[token, version] = subject
            case "indexed":
                if (subject, version) in self._indexed:
                    self._blame("a document's generation was indexed more than once", subject)
                self._indexed.add((subject, version))

    def end(self) -> None:
        """Everything was seen."""
        for job in self._parents.keys() - self.ends.keys():
            self._blame("a committed job is lost: it never ended", job)
        for (job, what), times in self._attempts.items():
            if times > (ALONE_CRASHES if what == "lost alone" else MAX_ATTEMPTS):
                self._blame(f"a poison job had more attempts than it may ({what})", job)
        for job, end in self.ends.items():
            if (end == "succeeded") != (job in self._results):
                self._blame("a result without success, or a success without result", job)
        self._counts.update(f"ended {end}" for end in self.ends.values())

    def knows(self, job: str) -> bool:
        """Whether a job was ever there."""
        return job in self._parents

    def _issued(self, token: str, worker: str, at: float, *, alone: bool) -> None:
        if token in self._workers:
            self._blame("a token was issued twice", token)
        self._workers[token] = worker
        self.tokens[token] = at
        if alone:
            self._alone.add(token)

    def _moved(self, job: str, token: str | None, move: tuple[str, str], actor: str) -> None:
        before, after = move
        if after == "running":
            self._held[job] = token
            parent = self._parents.get(job)
            if parent is not None and self.ends.get(parent) != "succeeded":
                self._blame("a job ran before the one that it waits for had succeeded", job)
        elif before == "running" and token != self._held.get(job):
            self._blame("a job was moved under a stale token", job)
        if after in BY_WORKER and not actor.startswith(f"vestry-{self._workers.get(token or '')}"):
            self._blame("a job was finished by a worker that did not hold it", job)
        if before in TERMINAL:
            self._blame("a job left a final state", job)
        if after in TERMINAL:
            if job in self.ends:
                self._blame("a job ended more than once", job)
            self.ends[job] = after
            if token in self._frozen and after in BY_WORKER:
                self.late.append((str(token), job))

    def _rescued(self, token: str | None, move: tuple[str, str], actor: str, at: float) -> None:
        """Taken back by the reconciler: a worker's own retry was never lost. A batch's last counts."""
        before, after = move
        if before == "running" and after in {"queued", "dead"} and actor.startswith(RECONCILER):
            self.returned[str(token)] = at

    def _result(self, job: str, token: str | None, state: str) -> None:
        if job in self._results:
            self._blame("a job's result was committed more than once", job)
        self._results.add(job)
        if state != "running" or token is None or token != self._held.get(job):
            self._blame("a result of somebody who did not hold the job", job)
        if token in self._frozen:
            self.late.append((str(token), job))

    def _receipt(self, job: str, token: str, outcome: str) -> None:
        self._counts[f"receipt: {outcome}"] += 1
        if token in self._frozen:
            self.zombies[token, job] = outcome
        if job not in self._poison:
            return
        if outcome in {"retry", "dead"}:
            self._attempts[job, "answered"] += 1
        elif outcome == "lost" and token in self._alone:
            self._attempts[job, "lost alone"] += 1
