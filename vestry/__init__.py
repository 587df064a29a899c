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
from vestry.classification import Classification, Label
from vestry.classification_results import ClassificationResult, LabelScore
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
from vestry.flows import Flow
from vestry.generation import Generation, Grounding, Message
from vestry.generation_results import Citation, GenerationResult
from vestry.hits import Hit, Hits
from vestry.jobs import Document, Embedding
from vestry.keyring import KeyRing
from vestry.lanes import LANES, Lane, Latency, Pool, Privacy
from vestry.ocr import Ocr
from vestry.ocr_results import OcrPage, OcrResult, OcrWord
from vestry.reading import LaneStatus
from vestry.receipts import Receipt
from vestry.replaying import PastJob
from vestry.rerank import Rerank
from vestry.rerank_results import Ranked, RerankResult
from vestry.results import EmbeddingResult, FailedDocument, IndexResult, JobRef, JobStatus, Result
from vestry.upstream import UPSTREAM

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
