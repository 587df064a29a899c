"""Embedding jobs: vectors of texts, or an index of documents.

Jobs are frozen, and validated on construction: each fault is an `InvalidInput` that names the field.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Literal

from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.base import COST_BYTES, UPSTREAM, Digest, Prepared
from vestry.lanes import KINDS, Kind
from vestry.validation import PAYLOAD_LIMIT, check_label, check_source, check_text, dump_json

EXTERNAL_ID: Final = "external-id"
"""Digest purpose of a document's id, as the documents' tables compare it."""
_DERIVED_ID: Final = "derived-id"


@dataclass(frozen=True, slots=True)
class Document:
    """A text to index.

    Attributes:
        text: the whole text; the worker chunks it.
        id: the caller's id for it, up to 200 characters. Indexing an id again replaces the document.
            By default a digest of date and text, under the owner's key if private, so that the same
            entry is the same document.
        date: shown with a hit; any text, or a date.
        metadata: any JSON object; stored, sealed if private, never searched.
    """

    text: str
    id: str | None = None
    date: str | dt.date | None = None
    metadata: Mapping[str, Any] | None = None

    def __repr__(self) -> str:
        return f"Document({len(self.text) if isinstance(self.text, str) else '?'} characters)"


@dataclass(frozen=True, slots=True)
class Embedding:
    """Vectors of texts, or an index of documents.

    With `texts`, the result holds the vectors. With `documents`, the worker splits each into
    chunks and stores their vectors for search, and the result counts them.

    Attributes:
        texts: texts to embed, each whole: one that is too long for the model fails the job.
        documents: documents to index; give either these or `texts`.
        source: collection of the documents, by which search filters. Lower-case letters, digits,
            `.`, `_`, `-`, up to 64; stored in the clear.
        model: a model's name in the catalogue; by default the workers' embedding model.
        input: whether texts are embedded as documents or as search queries.
        keep_text: False deletes the text once the job has succeeded: vectors and references stay,
            and hits have no text.
    """

    texts: Sequence[str] | None = None
    documents: Sequence[Document] | None = None
    source: str | None = None
    model: str | None = None
    input: Literal["document", "query"] = "document"
    keep_text: bool = True
    kind: ClassVar[Kind] = "embedding"

    def __post_init__(self) -> None:
        if (self.texts is None) == (self.documents is None):
            raise InvalidInput("texts", "give either texts or documents")
        if self.input not in {"document", "query"}:
            raise InvalidInput("input", "must be document or query")
        if self.model is not None:
            check_label("model", self.model)
        if self.texts is not None:
            _check_list("texts", self.texts)
            object.__setattr__(self, "texts", tuple(self.texts))
            if self.source is not None:
                raise InvalidInput("source", "belongs to documents, not to texts")
            for index, text in enumerate(self.texts):
                check_text(f"texts[{index}]", text)
        elif self.documents is not None:
            _check_list("documents", self.documents)
            object.__setattr__(self, "documents", tuple(self.documents))
            check_source(self.source)
            for index, document in enumerate(self.documents):
                _check_document(f"documents[{index}]", document)
            _check_distinct([document.id for document in self.documents])

    def __repr__(self) -> str:
        count = (
            f"{len(self.texts)} texts" if self.texts else f"{len(self.documents or ())} documents"
        )
        return f"Embedding({count})"

    def prepare(self, digest: Digest, payload_limit: int = PAYLOAD_LIMIT) -> Prepared:
        """Serialise: `{"texts", "input"}` or `{"documents", "source", "keep_text"}`.

        Raises:
            InvalidInput: two documents have the same id, or metadata is not JSON.
            PayloadTooLarge: over `payload_limit` bytes.
        """
        if self.texts is not None:
            body: dict[str, Any] = {"texts": list(self.texts), "input": self.input}
            references: tuple[tuple[str, bytes], ...] = ()
            field_name, texts = "texts", list(self.texts)
        else:
            assert self.documents is not None and self.source is not None  # noqa: S101, PT018
            rows = [_document_row(document, digest) for document in self.documents]
            _check_distinct([row["id"] for row in rows])
            body = {"documents": rows, "source": self.source, "keep_text": self.keep_text}
            references = tuple(
                (self.source, external_hash(digest, self.source, row["id"])) for row in rows
            )
            field_name, texts = "documents", [document.text for document in self.documents]
        payload = dump_json(field_name, body)
        if len(payload) > payload_limit:
            raise PayloadTooLarge(field_name, len(payload), payload_limit)
        return Prepared(
            kind=self.kind,
            pool=KINDS[self.kind],
            model=self.model,
            payload=payload,
            cost=1 + sum(len(text.encode()) for text in texts) // COST_BYTES,
            keep_payload=self.keep_text,
            documents=references,
        )


def document_id(document: Document, digest: Digest) -> str:
    """A document's id: its own, else a digest of its date and text."""
    if document.id is not None:
        return document.id
    return digest(_DERIVED_ID, json.dumps([_date_text(document), document.text]).encode()).hex()


def external_hash(digest: Digest, source: str, document_id: str) -> bytes:
    """A document's key in the tables: 32 bytes that do not reveal its id."""
    return digest(EXTERNAL_ID, f"{source}\n{document_id}".encode())


def _check_list(name: str, values: object) -> None:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InvalidInput(name, "must be a list")
    if not values:
        raise InvalidInput(name, "must not be empty")


def _check_document(name: str, document: object) -> None:
    if not isinstance(document, Document):
        raise InvalidInput(name, "must be a Document")
    check_text(f"{name}.text", document.text)
    if document.text == UPSTREAM and document.id is None:
        raise InvalidInput(f"{name}.id", "is required if the text is UPSTREAM")
    if document.id is not None:
        check_label(f"{name}.id", document.id)
    if isinstance(document.date, str):
        check_label(f"{name}.date", document.date)
    elif document.date is not None and not isinstance(document.date, dt.date):
        raise InvalidInput(f"{name}.date", "must be text or a date")
    if document.metadata is not None:
        if not isinstance(document.metadata, Mapping):
            raise InvalidInput(f"{name}.metadata", "must be a JSON object")
        dump_json(f"{name}.metadata", dict(document.metadata))


def _check_distinct(ids: Sequence[str | None]) -> None:
    seen: dict[str, int] = {}
    for index, document_id in enumerate(ids):
        if document_id is None:
            continue
        first = seen.setdefault(document_id, index)
        if first != index:
            raise InvalidInput(f"documents[{index}].id", f"repeats documents[{first}]")


def _document_row(document: Document, digest: Digest) -> dict[str, Any]:
    metadata = None if document.metadata is None else dict(document.metadata)
    return {
        "text": document.text,
        "id": document_id(document, digest),
        "date": _date_text(document),
        "metadata": metadata,
    }


def _date_text(document: Document) -> str | None:
    return document.date.isoformat() if isinstance(document.date, dt.date) else document.date


@dataclass(frozen=True, slots=True)
class EmbeddingResult:
    """Vectors in the order of the texts, each with the space's dimension.

    Attributes:
        space: name of the embedding space; only vectors of one space may be compared.
    """

    vectors: tuple[tuple[float, ...], ...] = field(repr=False)
    space: str

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> EmbeddingResult:
        """From the worker's `{"vectors", "space"}`."""
        return cls(tuple(tuple(map(float, row)) for row in body["vectors"]), str(body["space"]))


@dataclass(frozen=True, slots=True)
class FailedDocument:
    """A document of the job that could not be indexed; its neighbours were.

    Attributes:
        index: its position in the job's documents, from 0.
        code: short content-free code.
        message: one content-free sentence.
    """

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class IndexResult:
    """Counts of an indexing job.

    Attributes:
        documents: documents of the job.
        chunks: chunks that this job embedded and stored.
        embedded: documents that this job embedded.
        unchanged: documents whose stored chunks were already of this content.
        superseded: documents enqueued again or deleted meanwhile, and skipped.
        failed: documents that could not be indexed.
        space: the embedding space.
    """

    documents: int
    chunks: int
    embedded: int
    unchanged: int
    superseded: int
    failed: tuple[FailedDocument, ...]
    space: str | None

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> IndexResult:
        """From the worker's JSON, whose keys are the attributes."""
        return cls(
            documents=int(body["documents"]),
            chunks=int(body["chunks"]),
            embedded=int(body["embedded"]),
            unchanged=int(body["unchanged"]),
            superseded=int(body.get("superseded", 0)),
            failed=tuple(
                FailedDocument(int(row["index"]), str(row["code"]), str(row["message"]))
                for row in body.get("failed", ())
            ),
            space=body.get("space"),
        )
