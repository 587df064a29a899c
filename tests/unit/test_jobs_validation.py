"""Invalid input raises one error that names the field, before any database call."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from vestry import Vestry
from vestry.crypto.envelope import OwnerKey, new_dek, plain_digest
from vestry.db.enqueue import BATCH_JOBS, EnqueueBatch, KeyedJobs
from vestry.db.operations import uuid7
from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.base import JobOptions
from vestry.jobs.embedding import Document, Embedding, EmbeddingResult, FailedDocument, IndexResult
from vestry.jobs.flow import steps_of
from vestry.jobs.results import parse_result
from vestry.validation import PAYLOAD_LIMIT

SECRET = "canary-7f3a"


def documents(*items: Any, source: str | None = "diary") -> Embedding:
    return Embedding(documents=list(items), source=source)


def unconnected() -> Vestry:
    return Vestry("postgresql://nowhere.invalid/none")


def search(**arguments: Any) -> object:
    return unconnected().search("query", owner="alice", privacy="private", **arguments)


BAD: list[tuple[str, Callable[[], object]]] = [
    ("texts", Embedding),
    ("texts", lambda: Embedding(texts=["a"], documents=[Document("b")], source="s")),
    ("texts", lambda: Embedding(texts=[])),
    ("texts", lambda: Embedding(texts="one text, not a list")),
    ("texts[0]", lambda: Embedding(texts=[""])),
    ("texts[1]", lambda: Embedding(texts=["fine", " \n\t"])),
    ("texts[1]", lambda: Embedding(texts=["fine", f"{SECRET}\x00"])),
    ("texts[2]", lambda: Embedding(texts=["fine", "fine", f"{SECRET}\udce9"])),
    ("texts[0]", lambda: Embedding(texts=[SECRET.encode()])),  # type: ignore[list-item]
    ("texts[0]", lambda: Embedding(texts=[None])),  # type: ignore[list-item]
    ("texts[0]", lambda: Embedding(texts=["x" * (PAYLOAD_LIMIT + 1)])),
    ("input", lambda: Embedding(texts=["a"], input="passage")),  # type: ignore[arg-type]
    ("model", lambda: Embedding(texts=["a"], model="")),
    ("source", lambda: Embedding(texts=["a"], source="diary")),
    ("documents", documents),
    ("documents[0]", lambda: documents("just text")),
    ("documents[1].text", lambda: documents(Document("a"), Document(""))),
    ("documents[0].text", lambda: documents(Document(f"{SECRET}\x00"))),
    ("documents[0].id", lambda: documents(Document("a", id=""))),
    ("documents[0].id", lambda: documents(Document("a", id="i" * 201))),
    ("documents[0].date", lambda: documents(Document("a", date=1660))),  # type: ignore[arg-type]
    ("documents[0].metadata", lambda: documents(Document("a", metadata={"k": {SECRET}}))),
    ("documents[0].metadata", lambda: documents(Document("a", metadata={"k": float("nan")}))),
    ("documents[0].metadata", lambda: documents(Document("a", metadata={"k": "\ud800"}))),
    ("documents[0].metadata", lambda: documents(Document("a", metadata=[1]))),  # type: ignore[arg-type]
    ("documents[2].id", lambda: documents(Document("a", "x"), Document("b"), Document("c", "x"))),
    ("source", lambda: documents(Document("a"), source=None)),
    ("source", lambda: documents(Document("a"), source="My Diary")),
    ("source", lambda: documents(Document("a"), source="-x")),
    ("source", lambda: documents(Document("a"), source="x" * 65)),
    ("source", lambda: documents(Document("a"), source="diary\n")),
    ("privacy", lambda: JobOptions("alice", None)),  # type: ignore[arg-type]
    ("privacy", lambda: JobOptions("alice", "secret")),
    ("owner", lambda: JobOptions("", "private")),
    ("owner", lambda: JobOptions("o" * 201, "private")),
    ("owner", lambda: JobOptions("a\x00b", "private")),
    ("owner", lambda: JobOptions(None, "private")),  # type: ignore[arg-type]
    ("latency", lambda: JobOptions("alice", "private", "soon")),
    ("quality", lambda: JobOptions("alice", "private", quality="worst")),
    ("task", lambda: JobOptions("alice", "private", task="")),
    ("run_at", lambda: JobOptions("alice", "private", run_at=dt.datetime(2026, 1, 1))),  # noqa: DTZ001
    ("deadline", lambda: JobOptions("alice", "private", deadline="soon")),  # type: ignore[arg-type]
    ("max_attempts", lambda: JobOptions("alice", "private", max_attempts=0)),
    ("result_ttl_s", lambda: JobOptions("alice", "private", result_ttl_s=0)),
    ("privacy", lambda: JobOptions("alice", [])),  # type: ignore[arg-type]
    ("latency", lambda: JobOptions("alice", "private", [])),  # type: ignore[arg-type]
    ("quality", lambda: JobOptions("alice", "private", quality=[])),  # type: ignore[arg-type]
    ("max_attempts", lambda: JobOptions("alice", "private", max_attempts="3")),  # type: ignore[arg-type]
    ("max_attempts", lambda: JobOptions("alice", "private", max_attempts=1.5)),  # type: ignore[arg-type]
    ("max_attempts", lambda: JobOptions("alice", "private", max_attempts=True)),
    ("result_ttl_s", lambda: JobOptions("alice", "private", result_ttl_s="3")),  # type: ignore[arg-type]
    ("result_ttl_s", lambda: JobOptions("alice", "private", result_ttl_s=None)),  # type: ignore[arg-type]
    ("idempotency_keys", lambda: KeyedJobs([], "a")),
    ("idempotency_keys", lambda: KeyedJobs([], 5)),  # type: ignore[arg-type]
    ("job", lambda: steps_of(Embedding, plain_digest)),  # type: ignore[arg-type]
    ("timeout", lambda: unconnected().wait(uuid4(), "x")),  # type: ignore[arg-type]
    ("timeout", lambda: unconnected().wait(uuid4(), math.nan)),
    ("timeout", lambda: search(timeout="x")),
    ("timeout", lambda: search(timeout=None)),
]  # fmt: skip


@pytest.mark.parametrize(("field", "make"), BAD)
def test_bad_input_names_its_field_and_quotes_nothing(
    field: str, make: Callable[[], object]
) -> None:
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.field == field
    assert str(caught.value).startswith(f"{field}: ")
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_payload_over_the_limit_is_refused() -> None:
    longest = PAYLOAD_LIMIT - len('{"texts":[""],"input":"document"}')
    assert len(Embedding(texts=["x" * longest]).prepare(plain_digest).payload) == PAYLOAD_LIMIT
    with pytest.raises(PayloadTooLarge) as caught:
        Embedding(texts=["x" * (longest + 1)]).prepare(plain_digest)
    assert (caught.value.size, caught.value.limit) == (PAYLOAD_LIMIT + 1, PAYLOAD_LIMIT)


def test_same_document_twice_without_an_id_is_named() -> None:
    job = documents(Document("same", date="1660"), Document("same"), Document("same", date="1660"))
    with pytest.raises(InvalidInput) as caught:
        job.prepare(plain_digest)
    assert caught.value.field == "documents[2].id"


def test_payload_has_the_fields_that_the_handler_reads() -> None:
    texts = Embedding(texts=["größer", "b"], input="query", model="m").prepare(plain_digest)
    assert json.loads(texts.payload) == {"texts": ["größer", "b"], "input": "query"}
    assert (texts.kind, texts.pool.value, texts.model, texts.cost) == ("embedding", "gpu", "m", 1)
    job = Embedding(
        documents=[Document("x" * 5000, "a", dt.date(1660, 1, 2), {"k": [1]})],
        source="diary",
        keep_text=False,
    )
    prepared = job.prepare(plain_digest)
    assert json.loads(prepared.payload) == {
        "documents": [
            {"text": "x" * 5000, "id": "a", "date": "1660-01-02", "metadata": {"k": [1]}}
        ],
        "source": "diary",
        "keep_text": False,
    }
    assert prepared.cost == 1 + 5000 // 1024
    assert not prepared.keep_payload
    assert [source for source, _ in prepared.documents] == ["diary"]


def test_derived_id_depends_on_key_date_and_text_and_reveals_none() -> None:
    def derived(document: Document, key: OwnerKey) -> str:
        return str(
            json.loads(documents(document).prepare(key.digest).payload)["documents"][0]["id"]
        )

    one, other = (OwnerKey(uuid7(), "alice", new_dek()) for _ in range(2))
    entry = Document("Up early", date="1660-01-01")
    assert derived(entry, one) == derived(Document("Up early", date=dt.date(1660, 1, 1)), one)
    others = {
        derived(entry, other),
        derived(Document("Up early"), one),
        derived(Document("Up late", date="1660-01-01"), one),
    }
    assert derived(entry, one) not in others
    assert len(others) == 3


def test_reprs_show_no_text() -> None:
    document = Document(SECRET, id=SECRET, metadata={"k": SECRET})
    result = EmbeddingResult(vectors=((0.123,),), space="s")
    for thing in (document, Embedding(texts=[SECRET]), documents(document)):
        assert SECRET not in repr(thing)
    assert "0.123" not in repr(result)


def batch() -> EnqueueBatch:
    return EnqueueBatch(JobOptions("alice", "shareable"), plain_digest, None)


def test_batch_is_bounded_in_jobs_and_bytes() -> None:
    many, small = batch(), batch().prepare(Embedding(texts=["a"]))
    while many.has_room_for(small):
        many.add(small)
    assert len(many) == BATCH_JOBS
    heavy, large = batch(), batch().prepare(Embedding(texts=["x" * 1_000_000]))
    while heavy.has_room_for(large):
        heavy.add(large)
    assert len(heavy) == 4


def test_batch_indexes_a_document_once() -> None:
    first = batch()
    first.add(first.prepare(documents(Document("a", "x"))))
    assert not first.has_room_for(first.prepare(documents(Document("b", "x"))))
    assert first.has_room_for(first.prepare(documents(Document("b", "x"), source="other")))


@pytest.mark.parametrize(("keys", "word"), [(["a"], "fewer"), (["a", "b", "c"], "more")])
def test_numbers_of_keys_and_jobs_must_match(keys: list[str], word: str) -> None:
    with pytest.raises(InvalidInput, match=word):
        list(KeyedJobs([Embedding(texts=["a"])] * 2, keys))


def test_results_are_typed() -> None:
    vectors = parse_result("embedding", {"vectors": [[1, 2.5]], "space": "s"})
    assert vectors == EmbeddingResult(((1.0, 2.5),), "s")
    index = parse_result(
        "embedding",
        {"documents": 2, "chunks": 3, "embedded": 3, "unchanged": 0, "superseded": 0, "space": "s",
         "failed": [{"index": 1, "code": "c", "message": "m"}]},
    )  # fmt: skip
    assert index == IndexResult(2, 3, 3, 0, 0, (FailedDocument(1, "c", "m"),), "s")
    with pytest.raises(InvalidInput):
        parse_result("divination", {})


@pytest.mark.parametrize("name", ["enqueue", "enqueue_many"])
def test_unknown_or_missing_option_names_the_function(name: str) -> None:
    enqueue = getattr(unconnected(), name)
    with pytest.raises(
        TypeError, match=rf"^{name}\(\) .*'ownr'; it takes owner, privacy, .*idempotency"
    ):
        enqueue(None, [], ownr="alice", privacy="private")
    with pytest.raises(TypeError, match=rf"^{name}\(\) requires .* owner$"):
        enqueue(None, [], privacy="private")
    with pytest.raises(TypeError, match=rf"^{name}\(\) requires .* owner and privacy$"):
        enqueue(None, [])
