"""A job queue for AI work that keeps private text on your own machines.

A job is enqueued in the caller's own transaction: it exists if and only if that commits.

    import psycopg
    from vestry import Document, Embedding, Vestry

    with Vestry() as vestry, psycopg.connect("postgresql://…") as conn:
        job = vestry.enqueue(
            conn,
            Embedding(documents=[Document("Up early, and to the office.")], source="diary"),
            owner="user-17",
            privacy="private",
        )
        conn.commit()
        print(vestry.wait(job, timeout=60))
        for hit in vestry.search("an early morning", owner="user-17", privacy="private"):
            print(hit.score, hit.date, hit.text)

`AsyncVestry` is the same for asyncio; both also take SQLAlchemy sessions and connections.
"""

from vestry.aio import AsyncVestry
from vestry.client import Vestry
from vestry.dead_letters import Reason
from vestry.errors import (
    DatabaseError,
    IdempotencyConflict,
    InvalidInput,
    JobCancelled,
    JobExpired,
    JobFailed,
    JobSuperseded,
    KeyRingError,
    NotFinished,
    OwnerForgotten,
    PayloadGone,
    PayloadTooLarge,
    ResultGone,
    SealBroken,
    SettingsError,
    Unavailable,
    UnknownJob,
    UnknownKey,
    UnknownLane,
    UnknownOwner,
    UnknownSpace,
    VestryError,
    WaitTimeout,
)
from vestry.jobs import Document, Embedding
from vestry.keyring import KeyRing
from vestry.lanes import LANES, Lane, Latency, Pool, Privacy
from vestry.reading import LaneStatus
from vestry.replaying import Attempt, PastJob
from vestry.results import EmbeddingResult, FailedDocument, IndexResult, JobRef, JobStatus, Result
from vestry.search import Hit, Hits

__all__ = [
    "LANES",
    "AsyncVestry",
    "Attempt",
    "DatabaseError",
    "Document",
    "Embedding",
    "EmbeddingResult",
    "FailedDocument",
    "Hit",
    "Hits",
    "IdempotencyConflict",
    "IndexResult",
    "InvalidInput",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
    "JobRef",
    "JobStatus",
    "JobSuperseded",
    "KeyRing",
    "KeyRingError",
    "Lane",
    "LaneStatus",
    "Latency",
    "NotFinished",
    "OwnerForgotten",
    "PastJob",
    "PayloadGone",
    "PayloadTooLarge",
    "Pool",
    "Privacy",
    "Reason",
    "Result",
    "ResultGone",
    "SealBroken",
    "SettingsError",
    "Unavailable",
    "UnknownJob",
    "UnknownKey",
    "UnknownLane",
    "UnknownOwner",
    "UnknownSpace",
    "Vestry",
    "VestryError",
    "WaitTimeout",
]
