"""Errors of the producer library, distinguished by class and never by message.

No message holds a job's content, and none chains a driver error that could: Postgres errors are
translated by SQLSTATE (`from_sqlstate`) and raised `from None`.
"""

from __future__ import annotations

from typing import ClassVar, Final
from uuid import UUID

from vestry.failure_reasons import Reason, reason_of


class VestryError(Exception):
    """Base class of all errors of the library.

    Attributes:
        default_message: the message of an error that is raised without one.
    """

    default_message: ClassVar[str] = "Vestry failed."

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or self.default_message)


class InvalidInput(VestryError):
    """An argument cannot be used.

    Attributes:
        field: the argument, with its index: `texts[3]`, `documents[0].metadata`, `privacy`.
        problem: what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field = field
        self.problem = problem
        super().__init__(f"{field}: {problem}")

    def within(self, path: str) -> InvalidInput:
        """Prefix the field with a path: `jobs[7]` turns `texts[3]` into `jobs[7].texts[3]`."""
        self.field = f"{path}.{self.field}"
        self.args = (f"{self.field}: {self.problem}",)
        return self


class PayloadTooLarge(InvalidInput):
    """The payload or file of a job exceeds the size limit.

    Attributes:
        size: bytes of the serialised payload, or of the file.
        limit: bytes allowed in one job.
    """

    def __init__(self, field: str, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(field, f"{size} bytes; at most {limit} are allowed: split it")


class IdempotencyConflict(VestryError):
    """An idempotency key belongs to a job with other content. The transaction is still usable.

    Attributes:
        jobs: the jobs that hold the keys.
    """

    default_message = (
        "The idempotency key belongs to a job with other content, so nothing was enqueued. Use another "
        "key, or the same content."
    )

    def __init__(self, jobs: tuple[UUID, ...] = ()) -> None:
        self.jobs = jobs
        super().__init__()


class OwnerForgotten(VestryError):
    """The owner was forgotten, so its content is refused."""

    default_message = "The owner was forgotten: nothing may be stored for this owner."


class UnknownKey(VestryError):
    """A key is missing, from the key ring or from the database."""

    default_message = (
        "Neither key ring nor database has the key that sealed this content; restore the key ring."
    )


class KeyRingError(VestryError):
    """The key ring is missing, unreadable or malformed."""

    default_message = "The key ring cannot be used; check the VESTRY_KEYRING_… settings."


class SealBroken(VestryError):
    """Sealed content does not authenticate."""

    default_message = (
        "Sealed content does not open: it was changed, or belongs to another row, owner or field."
    )


class SettingsError(VestryError):
    """Settings of the library are missing or unreadable."""

    default_message = "No usable database or key ring is configured; see `vestry doctor`."


class UnknownJob(VestryError):
    """No job has this id."""

    default_message = "There is no such job: its id is wrong, or it was pruned."


class UnknownOwner(VestryError):
    """Nothing is stored for this owner."""

    default_message = (
        "Nothing is indexed for this owner; check its name, or search a shareable source."
    )
    code = "unknown_owner"


class UnknownSpace(VestryError):
    """No embedding space has this name."""

    default_message = "There is no such embedding space; check its name."


class UnknownLane(VestryError):
    """No lane has this name."""

    default_message = "There is no such lane; `vestry lanes` lists them."


class NotFinished(VestryError):
    """The job is not in a final state."""

    default_message = "The job has no result yet; wait for it."


class ResultGone(VestryError):
    """The result was deleted: its time to live ended, or a search read it."""

    default_message = "The job succeeded, but its result is no longer kept; submit it again."


class PayloadGone(VestryError):
    """A job cannot be replayed: its payload was deleted.

    Attributes:
        jobs: the jobs without a payload.
    """

    default_message = (
        "The job's payload is no longer kept, so the job cannot be replayed; submit it again."
    )

    def __init__(self, jobs: tuple[UUID, ...] = ()) -> None:
        self.jobs = jobs
        super().__init__()


class WaitTimeout(VestryError):
    """The wait ended before the job did; the job continues."""

    default_message = "The job was not finished within the timeout; it continues."


SEARCH_TIMEOUT: Final = "The query was not embedded within the timeout; its job was cancelled."
"""Message of `WaitTimeout` from a search, which cancels its job: no other caller reads the result."""


class JobFailed(VestryError):
    """The job ended without a result.

    Attributes:
        code: short content-free code, such as `model_unavailable`.
        message: one content-free sentence.
        state: dead, cancelled, expired or superseded; one subclass each for the last three.
    """

    state: ClassVar[str] = "dead"

    @property
    def reason(self) -> Reason:
        """The reason that the code belongs to."""
        return reason_of(self.code)

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")

    @staticmethod
    def of(state: str, code: str | None, message: str | None) -> JobFailed:
        """The error of a job that ended in `state`."""
        kind: type[JobFailed] = _BY_STATE.get(state, JobFailed)
        return kind(code or state, message or f"the job is {state}")


class JobCancelled(JobFailed):
    """The job was cancelled."""

    state = "cancelled"


class JobExpired(JobFailed):
    """The job's deadline passed before it finished."""

    state = "expired"


class JobSuperseded(JobFailed):
    """The job's documents were enqueued again or deleted before it finished."""

    state = "superseded"


_BY_STATE: dict[str, type[JobFailed]] = {
    kind.state: kind for kind in (JobFailed, JobCancelled, JobExpired, JobSuperseded)
}


class Unavailable(VestryError):
    """The database cannot be reached, is shutting down, or is out of resources."""

    default_message = "The database cannot be reached; `vestry doctor` shows the reason."


_OTHER_VERSION: Final = (
    "The database has no schema, table or function of this version (SQLSTATE {}): run "
    "`python -m workers.migrate`, or, if the database is newer, update this installation."
)
_BY_SQLSTATE: Final = {
    "3F000": _OTHER_VERSION,
    "42P01": _OTHER_VERSION,
    "42883": _OTHER_VERSION,
    "42501": "The database login lacks a permission (SQLSTATE {}): use the login of a producer or, for "
    "an operator's command, of an operator, or grant the missing role to this one.",
    "25006": "The database or transaction is read-only (SQLSTATE {}): connect to the primary server, "
    "not to a standby, and use a transaction that may write.",
    "22003": "A number is out of the database's range (SQLSTATE {}): use a smaller one.",
}
_REFUSED: Final = "The database refused a statement (SQLSTATE {}); see its log."


class DatabaseError(VestryError):
    """The database refused a statement.

    Attributes:
        sqlstate: Postgres's five-character code, if there is one.
    """

    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate
        message = _BY_SQLSTATE.get(sqlstate or "", _REFUSED)
        super().__init__(message.format(sqlstate or "unknown"))


def from_sqlstate(sqlstate: str | None, own_message: str | None = None) -> VestryError:
    """The library's error for a Postgres error.

    Args:
        sqlstate: its code. VYxxx are raised by Vestry's own SQL functions; classes 08, 53 and 57P
            mean that the server is unreachable, out of resources, or shutting down.
        own_message: the server's primary message; used only for VYxxx, whose texts hold no content.
    """
    if sqlstate is None or sqlstate[:2] in {"08", "53"} or sqlstate.startswith("57P"):
        return Unavailable()
    match sqlstate:
        case "VY001":
            return IdempotencyConflict()
        case "VY002" | "VY006":
            return UnknownKey(own_message)
        case "VY003":
            return InvalidInput("request", own_message or "was refused by the database")
        case "VY004":
            return OwnerForgotten()
        case _:
            return DatabaseError(sqlstate)
