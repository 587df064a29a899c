"""Flows: jobs enqueued together, each waiting for its parent and reading the parent's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from vestry.errors import InvalidInput
from vestry.jobs.base import UPSTREAM, Digest, JobRequest, Prepared
from vestry.lanes import WITH_FILES
from vestry.validation import PAYLOAD_LIMIT, check_label

MAX_STEPS: Final = 100
"""Most jobs in one flow."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A job, and the jobs that follow once it has succeeded.

    The followers have its owner, privacy, latency and deadline, and end with it: if it is cancelled,
    expires or dies, so do all of them.

    Attributes:
        job: the first job.
        then: jobs or flows that follow it directly, all at once.
        task: the purpose of the job; for the first job, `task` of `Vestry.enqueue` by default.
    """

    job: JobRequest
    then: Sequence[JobRequest | Flow] = ()
    task: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.then, (str, bytes)) or not isinstance(self.then, Sequence):
            raise InvalidInput("then", "must be a list of jobs")
        object.__setattr__(self, "then", tuple(self.then))
        if self.task is not None:
            check_label("task", self.task)


@dataclass(frozen=True, slots=True)
class Step:
    """One job of a flow, ready to be enqueued.

    Attributes:
        parent: position, in the flow, of the job it waits for; None for the first.
        task: its own task, if it has one.
    """

    prepared: Prepared
    parent: int | None = None
    task: str | None = None


def followed(job: JobRequest | Flow, then: Sequence[JobRequest | Flow]) -> JobRequest | Flow:
    """A job or flow with more followers of its first job."""
    if not then:
        return job
    if isinstance(job, Flow):
        return replace(job, then=(*job.then, *then))
    return Flow(job, then)


def has_files(job: JobRequest | Flow) -> bool:
    """Whether a job or a follower has a file; its enqueue then takes several statements."""
    if isinstance(job, Flow):
        return has_files(job.job) or any(map(has_files, job.then))
    return getattr(job, "kind", None) in WITH_FILES


def steps_of(
    job: JobRequest | Flow, digest: Digest, payload_limit: int = PAYLOAD_LIMIT
) -> list[Step]:
    """A job or flow as steps, each after its parent.

    Raises:
        InvalidInput: names the field by its path through the flow: `then[0].texts[2]`.
    """
    steps: list[Step] = []

    def add(job: JobRequest | Flow, parent: int | None, path: str) -> None:
        flow = job if isinstance(job, Flow) else Flow(job)
        prepared = _prepared(flow.job, path, digest, payload_limit)
        if parent is None and UPSTREAM.encode() in prepared.payload:
            raise InvalidInput("job", "uses UPSTREAM but is the first of its flow")
        if len(steps) == MAX_STEPS:
            raise InvalidInput("then", f"makes a flow of more than {MAX_STEPS} jobs; split it")
        position = len(steps)
        steps.append(Step(prepared, parent, flow.task))
        for number, following in enumerate(flow.then):
            add(following, position, f"{path}.then[{number}]".removeprefix("."))

    add(job, None, "")
    return steps


def _prepared(job: JobRequest, path: str, digest: Digest, payload_limit: int) -> Prepared:
    if isinstance(job, type) or not callable(getattr(job, "prepare", None)):
        raise InvalidInput(path or "job", "must be a job, such as Embedding(texts=[…])")
    try:
        return job.prepare(digest, payload_limit)
    except InvalidInput as error:
        raise (error.within(path) if path else error) from None
