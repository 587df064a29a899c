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

`AsyncVestry` is the same for asyncio; both also accept SQLAlchemy sessions and connections.
"""

from vestry.aio import AsyncVestry
from vestry.client import Vestry
from vestry.crypto.keyring import KeyRing
from vestry.db.job_queries import LaneStatus
from vestry.db.receipts import Receipt
from vestry.db.replay import PastJob
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
from vestry.failure_reasons import Reason
from vestry.jobs.base import UPSTREAM
from vestry.jobs.classification import Classification, ClassificationResult, Label, LabelScore
from vestry.jobs.embedding import Document, Embedding, EmbeddingResult, FailedDocument, IndexResult
from vestry.jobs.flow import Flow
from vestry.jobs.generation import Citation, Generation, GenerationResult, Grounding, Message
from vestry.jobs.ocr import Ocr, OcrPage, OcrResult, OcrWord
from vestry.jobs.rerank import Ranked, Rerank, RerankResult
from vestry.jobs.results import JobRef, JobStatus, Result
from vestry.lanes import LANES, Lane, Latency, Pool, Privacy
from vestry.search.hits import Hit, Hits

__all__ = [
    "LANES",
    "UPSTREAM",
    "AsyncVestry",
    "Citation",
    "Classification",
    "ClassificationResult",
    "DatabaseError",
    "Document",
    "Embedding",
    "EmbeddingResult",
    "FailedDocument",
    "Flow",
    "Generation",
    "GenerationResult",
    "Grounding",
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
    "Label",
    "LabelScore",
    "Lane",
    "LaneStatus",
    "Latency",
    "Message",
    "NotFinished",
    "Ocr",
    "OcrPage",
    "OcrResult",
    "OcrWord",
    "OwnerForgotten",
    "PastJob",
    "PayloadGone",
    "PayloadTooLarge",
    "Pool",
    "Privacy",
    "Ranked",
    "Reason",
    "Receipt",
    "Rerank",
    "RerankResult",
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
