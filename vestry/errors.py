"""Errors of the producer library: a small family, told apart by class and never by message.

No message holds a job's content, and none chains a driver error that could: what Postgres says is
translated by SQLSTATE (`from_sqlstate`) and raised `from None`.
"""

from __future__ import annotations

from typing import ClassVar, Final
from uuid import UUID

from vestry.failure_reasons import Reason, reason_of


class VestryError(Exception):
    """Something in Vestry went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class InvalidInput(VestryError):
    """An argument cannot be used.

    Attributes:
        field: which one, with its index: `texts[3]`, `documents[0].metadata`, `privacy`.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")

    def within(self, place: str) -> InvalidInput:
        """The same fault, seen from outside: `jobs[7]` makes `texts[3]` `jobs[7].texts[3]`."""
        self.field = f"{place}.{self.field}"
        self.args = (f"{self.field}: {self.problem}",)
        return self


class PayloadTooLarge(InvalidInput):
    """The job's payload is larger than a payload may be.

    Attributes:
        size: bytes of the serialised payload.
        limit: bytes allowed.
    """

    def __init__(self, field: str, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(field, f"{size} bytes, of which {limit} are allowed in one job")


class IdempotencyConflict(VestryError):
    """The idempotency key was used before for a job with other content; nothing was enqueued.

    The caller's transaction is still usable.

    Attributes:
        jobs: the jobs that hold the keys.
    """

    def __init__(self, jobs: tuple[UUID, ...] = ()) -> None:
        self.jobs = jobs
        super().__init__()


class OwnerForgotten(VestryError):
    """The owner was forgotten: nothing may be stored for them."""


class UnknownKey(VestryError):
    """A key is missing: the key ring or the database does not know the key this was sealed with."""


class KeyRingError(VestryError):
    """The key ring cannot be used."""


class SealBroken(VestryError):
    """Sealed content does not open: it was changed, or belongs to another row, owner or field."""


class SettingsError(VestryError):
    """The library was not told which database or key ring to use."""


class UnknownJob(VestryError):
    """There is no such job."""


class UnknownOwner(VestryError):
    """Nothing is indexed for this owner; check its name, or search a shareable source."""

    code = "unknown_owner"


class UnknownSpace(VestryError):
    """There is no such embedding space."""


class UnknownLane(VestryError):
    """There is no such lane."""


class NotFinished(VestryError):
    """The job has no result yet."""


class ResultGone(VestryError):
    """The job succeeded, and its result is no longer kept."""


class PayloadGone(VestryError):
    """What the job was given is no longer kept, so it cannot be replayed; submit it again.

    Attributes:
        jobs: which jobs.
    """

    def __init__(self, jobs: tuple[UUID, ...] = ()) -> None:
        self.jobs = jobs
        super().__init__()


class WaitTimeout(VestryError):
    """The job was not finished in the time given; it goes on."""


SEARCH_TIMEOUT: Final = "The query was not embedded in the time given; its job was cancelled."
"""What `WaitTimeout` says of a search: nobody else could read the answer, so nothing goes on."""


class JobFailed(VestryError):
    """The job ended without a result.

    Attributes:
        code: short content-free code, such as `model_unavailable`.
        message: one content-free sentence.
        state: dead, cancelled, expired or superseded; the subclasses say it by type.
    """

    state: ClassVar[str] = "dead"

    @property
    def reason(self) -> Reason:
        """What kind of end a dead job came to."""
        return reason_of(self.code)

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")

    @staticmethod
    def of(state: str, code: str | None, message: str | None) -> JobFailed:
        """The error for a job that ended in `state`."""
        kind: type[JobFailed] = _BY_STATE.get(state, JobFailed)
        return kind(code or state, message or f"the job is {state}")


class JobCancelled(JobFailed):
    """The job was cancelled."""

    state = "cancelled"


class JobExpired(JobFailed):
    """The job's deadline passed before it was done."""

    state = "expired"


class JobSuperseded(JobFailed):
    """The job's documents were enqueued again or deleted meanwhile."""

    state = "superseded"


_BY_STATE: dict[str, type[JobFailed]] = {
    kind.state: kind for kind in (JobFailed, JobCancelled, JobExpired, JobSuperseded)
}


class Unavailable(VestryError):
    """The database cannot be reached."""


class DatabaseError(VestryError):
    """The database refused a statement.

    Attributes:
        sqlstate: Postgres's five-character code, where there is one.
    """

    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate
        super().__init__(f"the database refused a statement (SQLSTATE {sqlstate or 'unknown'})")


def from_sqlstate(sqlstate: str | None, own_message: str | None = None) -> VestryError:
    """Translate what Postgres raised.

    Args:
        sqlstate: its code. VYxxx are raised by Vestry's own SQL functions; classes 08
            and 57P and 53 mean that the server is not there, ending or full.
        own_message: the server's primary message; used for VYxxx alone, whose texts are ours and
            hold no content.
    """
    if sqlstate is None or sqlstate[:2] in {"08", "53"} or sqlstate.startswith("57P"):
        return Unavailable()
    match sqlstate:
        case "VY001":
            return IdempotencyConflict()
        case "VY002" | "VY006":
            return UnknownKey(own_message)
        case "VY003":
            return InvalidInput("request", own_message or "refused by the database")
        case "VY004":
            return OwnerForgotten()
        case _:
            return DatabaseError(sqlstate)
