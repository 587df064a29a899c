"""Flows: jobs that wait on one another, enqueued together, each given the text of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from vestry.errors import InvalidInput
from vestry.jobs.base import UPSTREAM, Digest, JobRequest, Prepared
from vestry.lanes import WITH_FILES
from vestry.validation import PAYLOAD_LIMIT, check_label

STEPS_MOST: Final = 100
"""Jobs in one flow."""


@dataclass(frozen=True, slots=True)
class Flow:
    """A job, and what follows once it has succeeded.

    What follows has its owner, privacy, latency and deadline, waits until then, and ends with it: where
    it is cancelled, expires or fails for good, so does all that would have followed.

    Attributes:
        job: what to do first.
        then: what each follows directly on it, at once and side by side; flows for more after those.
        task: what the job is for, as in `Vestry.enqueue`; for the first job, its argument there.
    """

    job: JobRequest
    then: Sequence[JobRequest | Flow] = ()
    task: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.then, (str, bytes)) or not isinstance(self.then, Sequence):
            raise InvalidInput("then", "is not a list of jobs")
        object.__setattr__(self, "then", tuple(self.then))
        if self.task is not None:
            check_label("task", self.task)


@dataclass(frozen=True, slots=True)
class Step:
    """One job of a flow, ready to be enqueued.

    Attributes:
        parent: the place, in the flow, of the job it waits on; None for the first.
        task: its own, where it has one.
    """

    prepared: Prepared
    parent: int | None = None
    task: str | None = None


def followed(job: JobRequest | Flow, then: Sequence[JobRequest | Flow]) -> JobRequest | Flow:
    """A job or flow with more that follows on its first job."""
    if not then:
        return job
    if isinstance(job, Flow):
        return replace(job, then=(*job.then, *then))
    return Flow(job, then)


def has_files(job: JobRequest | Flow) -> bool:
    """Whether a job, or one that follows on it, carries a file: enqueueing takes several statements."""
    if isinstance(job, Flow):
        return has_files(job.job) or any(map(has_files, job.then))
    return getattr(job, "kind", None) in WITH_FILES


def steps_of(
    job: JobRequest | Flow, digest: Digest, payload_limit: int = PAYLOAD_LIMIT
) -> list[Step]:
    """A job or flow as steps, each after the one it waits on.

    Raises:
        InvalidInput: naming the field, with its way through the flow: `then[0].texts[2]`.
    """
    steps: list[Step] = []

    def add(job: JobRequest | Flow, parent: int | None, path: str) -> None:
        flow = job if isinstance(job, Flow) else Flow(job)
        prepared = _prepared(flow.job, path, digest, payload_limit)
        if parent is None and UPSTREAM.encode() in prepared.payload:
            raise InvalidInput("job", "has no job before it: UPSTREAM stands for nothing")
        if len(steps) == STEPS_MOST:
            raise InvalidInput("then", f"makes a flow of more than {STEPS_MOST} jobs")
        place = len(steps)
        steps.append(Step(prepared, parent, flow.task))
        for number, following in enumerate(flow.then):
            add(following, place, f"{path}.then[{number}]".removeprefix("."))

    add(job, None, "")
    return steps


def _prepared(job: JobRequest, path: str, digest: Digest, payload_limit: int) -> Prepared:
    if not callable(getattr(job, "prepare", None)):
        raise InvalidInput(path or "job", "is not a job, such as Embedding(texts=[…])")
    try:
        return job.prepare(digest, payload_limit)
    except InvalidInput as error:
        raise (error.within(path) if path else error) from None
