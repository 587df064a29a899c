"""Jobs that succeed and fail in every way, with a token in every private field."""

from __future__ import annotations

import datetime as dt
import random
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.job_helpers import RawPayload
from tests.privacy.needles import Marker
from vestry import Document, Embedding, JobFailed, Vestry, VestryError
from vestry.jobs.results import JobRef

SOURCE = "canary"
TIMEOUT_S = 240.0

FAULTS = ("bad-request", "nan", "zero", "wrong-dimension", "raise", "unavailable",
          "out-of-memory", "refused", "rate-limited=0.1")  # fmt: skip
"""Faults of the echo backend; each ends a job."""


@dataclass(slots=True)
class Scenario:
    """One privacy class's jobs.

    Attributes:
        privacy: of every job.
        marker: of every token.
        jobs: the topic of each job, the job, and its expected final state.
        errors: every error that a producer received, with its traceback.
    """

    privacy: str
    marker: Marker
    vestry: Vestry
    conn: psycopg.Connection[Any]
    errors: list[str]
    jobs: list[tuple[str, JobRef, str]] = field(default_factory=list)
    running: list[JobRef] = field(default_factory=list)
    """Jobs to cancel while they run."""

    @property
    def owner(self) -> str:
        return f"owner-{self.privacy}"

    def submit(self, about: str, job: Any, ends: str, **options: Any) -> JobRef:
        options = {"latency": "interactive"} | options
        reference = self.vestry.enqueue(
            self.conn, job, owner=self.owner, privacy=self.privacy, **options
        )
        self.jobs.append((about, reference, ends))
        return reference

    def token(self, name: str) -> str:
        return self.marker.token(f"{self.privacy}: {name}")

    def text(self, name: str, fault: str = "") -> str:
        return f"Up and walked {self.token(name)} to the office. {fault}".strip()

    def document(self, name: str, text: str = "", **fields: Any) -> Document:
        defaults = {
            "text": f"{text} {self.text(f'{name}, text')}".strip(),
            "id": self.token(f"{name}, id"),
            "date": f"1660 {self.token(f'{name}, date')}",
            "metadata": {
                self.token(f"{name}, metadata key"): [self.token(f"{name}, metadata value")]
            },
        }
        return Document(**(defaults | fields))

    def enqueue(self) -> None:
        """Enqueue every job but the one that crashes a worker."""
        self._texts()
        self._documents()
        self._stopped()
        self._malformed()
        self._refused()

    def crash(self) -> None:
        """Enqueue a job that crashes its process twice; last, since it delays other jobs."""
        self.submit("crash", _embedding(self.text("crash", "echo!exit")), "dead", latency="bulk")

    def stop_running(self) -> None:
        """Cancel jobs while they run."""
        for job in self.running:
            self.wait_running(job)
            self.vestry.cancel([job])

    def search(self) -> None:
        """Search, with queries that succeed and that fail."""
        for fault in ("", "echo!bad-request", "echo!nan"):
            for rerank in (False, True):
                with self.record_errors():
                    self.vestry.search(
                        self.text(f"query {fault}", fault), owner=self.owner, privacy=self.privacy,
                        timeout=TIMEOUT_S, rerank=rerank,
                    )  # fmt: skip

    def wait(self) -> None:
        """Wait until every job has ended, in its expected state."""
        until = time.monotonic() + TIMEOUT_S
        references = [reference for _, reference, _ in self.jobs]
        while not all(status.finished for status in self.vestry.statuses(references)):
            assert time.monotonic() < until, "jobs do not end"
            time.sleep(0.1)
        states = {status.job: status.state for status in self.vestry.statuses(references)}
        wrong = {
            about: (states[reference.id], ends)
            for about, reference, ends in self.jobs
            if states[reference.id] != ends
        }
        assert not wrong, f"state and the one expected: {wrong}"
        for _, reference, _ends in self.jobs:
            with self.record_errors():
                self.vestry.result(reference)

    def wait_running(self, job: JobRef) -> None:
        """Wait until a job is no longer queued."""
        until = time.monotonic() + TIMEOUT_S
        while self.vestry.status(job).state == "queued":
            assert time.monotonic() < until, "the job does not start"
            time.sleep(0.01)

    @contextmanager
    def record_errors(self) -> Iterator[None]:
        """Record the traceback of an error, as a producer might log it."""
        try:
            yield
        except (VestryError, JobFailed):
            self.errors.append(traceback.format_exc())

    def _texts(self) -> None:
        key = self.token("idempotency key")
        twice = _embedding(self.text("text"), self.text("second text"))
        self.submit("texts", twice, "succeeded", idempotency_key=key)
        self.submit("texts again", twice, "succeeded", idempotency_key=key)
        with self.record_errors():
            self.submit("other", _embedding(self.text("other")), "", idempotency_key=key)
        self.submit("in bulk", _embedding(self.text("bulk")), "succeeded", latency="bulk")
        for fault in FAULTS:
            job = _embedding(self.text(f"text of {fault}", f"echo!{fault}"))
            self.submit(fault, job, "dead", max_attempts=2)
        words = random.Random(1)  # noqa: S311 - filler
        filler = " ".join(f"{words.getrandbits(64):x}" for _ in range(200))
        self.submit("too long", _embedding(f"{self.text('too long')} {filler}"), "dead")
        model = Embedding(texts=[self.text("unknown model")], model="no-such-model")
        self.submit("unknown model", model, "dead")

    def _documents(self) -> None:
        def index(about: str, ends: str, *documents: Document, **options: Any) -> JobRef:
            job = Embedding(documents=documents, source=SOURCE, **options)
            return self.submit(about, job, ends, latency="bulk")

        words = random.Random(2)  # noqa: S311 - filler
        long = ". ".join(f"{words.getrandbits(200):x}" for _ in range(60))
        index("documents", "succeeded", self.document("entry"), self.document("long", long))
        index("no id", "succeeded", self.document("no id", id=None))
        index("text not kept", "succeeded", self.document("not kept"), keep_text=False)
        index(
            "one of two fails", "succeeded", self.document("neighbour"),
            self.document("failing", "echo!bad-request"),
        )  # fmt: skip
        index("all fail", "dead", self.document("nan", "echo!nan"))
        old = self.document("overtaken", "echo!sleep=3")
        overtaken = index("overtaken", "superseded", old)
        self.wait_running(overtaken)
        index("overtaking", "succeeded", self.document("overtaking", id=old.id))
        gone = self.document("deleted", "echo!sleep=3")
        deleted = index("deleted", "superseded", gone)
        self.wait_running(deleted)
        assert gone.id is not None
        self.vestry.delete_documents(
            self.conn, owner=self.owner, privacy=self.privacy, source=SOURCE, ids=[gone.id]
        )

    def _stopped(self) -> None:
        later = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=60)
        soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.5)
        waiting = self.submit("cancelled", _embedding(self.text("cancelled")), "cancelled",
                              run_at=later)  # fmt: skip
        running = self.submit(
            "cancelled running", _embedding(self.text("running", "echo!sleep=4")), "cancelled"
        )
        self.submit("expired", _embedding(self.text("expired")), "expired", run_at=later,
                    deadline=soon)  # fmt: skip
        self.wait_running(running)
        self.vestry.cancel([waiting, running])

    def _malformed(self) -> None:
        token = self.token
        payloads = {
            "not JSON": f"{{'{token('not JSON')}".encode(),
            "a list": f'["{token("a list")}"]'.encode(),
            "a string": f'"{token("a string")}"'.encode(),
            "texts no list": f'{{"texts": "{token("texts no list")}"}}'.encode(),
            "text no string": f'{{"texts": [["{token("text no string")}"]]}}'.encode(),
            "odd input": f'{{"texts": ["a"], "input": "{token("odd input")}"}}'.encode(),
            "unexpected": f'{{"{token("unexpected")}": 1}}'.encode(),
            "odd documents": f'{{"documents": [{{"text": "{token("odd documents")}"}}], '
                             f'"source": "{token("odd source")}"}}'.encode(),
        }  # fmt: skip
        if self.privacy == "private":
            payloads["not UTF-8"] = b'{"texts": ["\xff\xfe ' + token("not UTF-8").encode() + b'"]}'
        for about, payload in payloads.items():
            self.submit(about, RawPayload(payload), "dead")

    def _refused(self) -> None:
        """Requests that the library or the database refuses."""
        token = self.token
        wrong: list[Callable[[], object]] = [
            lambda: _embedding(f"NUL \0 {token('NUL')}"),
            lambda: _embedding(f"surrogate \ud800 {token('surrogate')}"),
            lambda: _embedding(f"{token('oversize')} {'x' * (1 << 20)}"),
            lambda: Embedding(documents=[self.document("odd", metadata={"a": object()})],
                              source=SOURCE),
            lambda: Embedding(documents=[self.document("label", id=token("label") * 20)],
                              source=SOURCE),
            lambda: self.submit("", _embedding(self.text("key")), "",
                                idempotency_key=token("key") * 20),
        ]  # fmt: skip
        for attempt in wrong:
            before = len(self.errors)
            with self.record_errors():
                attempt()
            assert len(self.errors) == before + 1, "it was not refused"
        if self.privacy == "private":
            try:
                self.conn.execute(UNSEALED, [[f'{{"texts": ["{token("unsealed")}"]}}']])
            except psycopg.Error as error:
                assert error.sqlstate == "VY002"  # noqa: PT017 - anything else propagates
            else:
                raise AssertionError("an unsealed private payload was accepted")


UNSEALED = """SELECT * FROM vestry.enqueue_jobs_v1(
  'owner-private', 'private', 'bulk', p_ids => ARRAY[gen_random_uuid()],
  p_kinds => ARRAY['embedding'], p_pools => ARRAY['gpu'], p_costs => ARRAY[1],
  p_keep_payload => ARRAY[true], p_result_ttl_s => ARRAY[60], p_texts => %s::text[])"""
"""An unsealed private job, by a producer without the library."""


def _embedding(*texts: str) -> Embedding:
    return Embedding(texts=list(texts))
