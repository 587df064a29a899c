"""The embedding handler, on the echo backend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from inference.errors import BackendUnavailable
from models.documents import DocumentState
from tasks.embedding import EmbeddingHandler, RoutedEmbedding, plan_of
from tasks.protocol import (
    ConfirmDocument,
    Context,
    Failed,
    IndexDocument,
    Job,
    Outcome,
    Succeeded,
)
from tests.faulty_echo import FaultyEchoModel
from tests.handler_fakes import CancelledJobs, RecordingModel, router

SPACE_ID = 17
SECRET = "sekrit-token"


def digest(purpose: str, data: bytes) -> bytes:
    return hashlib.sha256(purpose.encode() + b"\0" + data).digest()


def context_of(*cancelled: UUID) -> Context:
    return Context(CancelledJobs(*cancelled), {"alice": digest, "bob": digest})


def job(payload: Any, *states: DocumentState, owner: str = "alice", **more: Any) -> Job:
    fields: dict[str, Any] = {
        "id": uuid4(), "kind": "embedding", "task": None, "owner": owner, "privacy": "private",
        "latency": "bulk", "model": None, "payload": payload, "documents": states,
    }  # fmt: skip
    return Job(**fields | more)


def state(
    indexed_hash: bytes | None = None, indexed_space: str | None = None, *, current: bool = True
) -> DocumentState:
    return DocumentState(uuid4(), 3, current, indexed_hash, indexed_space)


def texts_job(*texts: str, **more: Any) -> Job:
    return job({"texts": list(texts), "input": more.pop("input", "document")}, **more)


def documents_job(*texts: Any, states: Sequence[DocumentState] = (), **more: Any) -> Job:
    documents = [
        text if isinstance(text, dict) else {"text": text, "id": str(index), "date": None}
        for index, text in enumerate(texts)
    ]
    payload = {"documents": documents, "source": "diary", "keep_text": more.pop("keep_text", True)}
    return job(payload, *(states or [state() for _ in texts]), **more)


def run(backend: FaultyEchoModel, *jobs: Job, context: Context | None = None) -> list[Outcome]:
    outcomes = list(EmbeddingHandler(backend, SPACE_ID)(jobs, context or context_of()))
    assert len(outcomes) == len(jobs)
    return outcomes


def succeeded(outcome: Outcome) -> Succeeded:
    assert isinstance(outcome, Succeeded), outcome
    json.dumps(outcome.result, allow_nan=False)
    return outcome


def failed(outcome: Outcome) -> Failed:
    assert isinstance(outcome, Failed), outcome
    assert SECRET not in outcome.message
    return outcome


def indexed(outcome: Outcome) -> list[IndexDocument]:
    return [e for e in succeeded(outcome).effects if isinstance(e, IndexDocument)]


def test_vectors_are_in_the_order_of_texts() -> None:
    backend = RecordingModel()
    texts = ["a long text that sorts first among these", "b", "mid size"]
    (outcome,) = run(backend, texts_job(*texts))
    result = succeeded(outcome).result
    assert result["space"] == backend.space.name
    assert np.allclose(result["vectors"], FaultyEchoModel().embed(texts), atol=1e-7)
    assert len(json.dumps(result["vectors"][0])) < 384 * 14
    served = succeeded(outcome).served
    assert served is not None
    assert (served.backend, served.model, served.locality) == ("echo", "echo", "local")
    assert served.input_tokens == sum(FaultyEchoModel().count_tokens(texts))


def test_input_and_urgency_are_passed_to_the_model() -> None:
    backend = RecordingModel()
    run(backend, texts_job("where did he dine", input="query", latency="interactive"))
    assert backend.calls == [(["where did he dine"], "query", True)]
    run(backend, texts_job("where did he dine"))
    assert backend.calls[1:] == [(["where did he dine"], "document", False)]


def test_equal_texts_of_a_batch_are_embedded_once() -> None:
    backend = RecordingModel()
    outcomes = run(
        backend,
        texts_job("same", "same", "other"),
        texts_job("same", owner="bob"),
        documents_job("same", "  same\n"),
    )
    assert sorted(backend.embedded) == ["other", "same"]
    vectors = succeeded(outcomes[0]).result["vectors"]
    assert vectors[0] == vectors[1] == succeeded(outcomes[1]).result["vectors"][0]
    assert len(indexed(outcomes[2])) == 2


def test_document_has_chunks_with_offsets_and_detail() -> None:
    backend = FaultyEchoModel()
    text = "  Up betimes, é and 💡 to the office. " * 60
    metadata = {"weather": "rain"}
    document = {"text": text, "id": "x1", "date": "1660-01-01", "metadata": metadata}
    (outcome,) = run(backend, documents_job(document))
    (effect,) = indexed(outcome)
    assert effect.source == "diary"
    assert effect.space_id == SPACE_ID
    assert effect.generation == 3
    assert effect.keep_text is True
    assert effect.detail == {"id": "x1", "date": "1660-01-01", "metadata": metadata}
    assert [chunk.ordinal for chunk in effect.chunks] == list(range(len(effect.chunks)))
    assert len(effect.chunks) > 1
    for chunk in effect.chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert np.allclose(chunk.vector, backend.embed([chunk.text])[0])
    assert succeeded(outcome).result == {
        "documents": 1, "chunks": len(effect.chunks), "embedded": 1, "unchanged": 0,
        "superseded": 0, "failed": [], "space": backend.space.name,
    }  # fmt: skip


def test_unchanged_document_is_confirmed_and_not_embedded() -> None:
    backend = RecordingModel()
    (first,) = run(backend, documents_job("entry"))
    (effect,) = indexed(first)
    backend.calls.clear()
    stored = state(effect.content_hash, backend.space.name)
    (again,) = run(backend, documents_job("entry", states=[stored]))
    assert backend.embedded == []
    assert succeeded(again).effects == (ConfirmDocument(stored.document_id, 3),)
    assert succeeded(again).result["unchanged"] == 1
    assert succeeded(again).result["embedded"] == 0
    assert succeeded(again).served is None


@pytest.mark.parametrize(
    "change",
    [
        {"text": "another"}, {"id": "other"}, {"date": "1660-01-02"}, {"metadata": {"a": 1}},
    ],
)  # fmt: skip
def test_document_with_a_changed_field_is_indexed_again(change: dict[str, Any]) -> None:
    backend = RecordingModel()
    document = {"text": "entry", "id": "0", "date": None, "metadata": None}
    (first,) = run(backend, documents_job(document))
    stored = state(indexed(first)[0].content_hash, backend.space.name)
    (again,) = run(backend, documents_job(document | change, states=[stored]))
    assert len(indexed(again)) == 1


def test_change_of_keep_text_or_space_indexes_again() -> None:
    backend = RecordingModel()
    (first,) = run(backend, documents_job("entry"))
    content_hash = indexed(first)[0].content_hash
    same, other = state(content_hash, backend.space.name), state(content_hash, "other.space")
    (outcome,) = run(backend, documents_job("entry", states=[same], keep_text=False))
    assert [effect.keep_text for effect in indexed(outcome)] == [False]
    (outcome,) = run(backend, documents_job("entry", states=[other]))
    assert len(indexed(outcome)) == 1


def test_superseded_document_is_not_embedded() -> None:
    backend = RecordingModel()
    (outcome,) = run(backend, documents_job("old", "new", states=[state(current=False), state()]))
    assert backend.embedded == ["new"]
    assert succeeded(outcome).result["superseded"] == 1
    assert len(succeeded(outcome).effects) == 1


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ("echo!nan", "bad_vector"),
        ("echo!zero", "bad_vector"),
        ("echo!wrong-dimension", "bad_vector"),
        ("echo!bad-request", "bad_request"),
        ("echo!out-of-memory", "out_of_memory"),
        ("   \n", "empty_text"),
        (f"{SECRET}\0", "bad_text"),
        (f"{SECRET}\ud800", "bad_text"),
        ({"text": 7}, "bad_text"),
        ({"text": "fine", "date": 1660}, "bad_document"),
        ({"text": "fine", "metadata": [SECRET]}, "bad_document"),
        (["not an object"], "bad_document"),
    ],
)
def test_invalid_document_fails_alone(bad: Any, code: str) -> None:
    texts: list[Any] = ["one", "two", bad, "three", "four"]
    payload = documents_job("one", "two", "x", "three", "four").payload
    payload["documents"][2] = {"text": bad, "id": "2"} if isinstance(bad, str) else bad
    outcomes = run(
        FaultyEchoModel(),
        documents_job("before"),
        job(payload, *[state() for _ in texts]),
        texts_job("after"),
    )
    result = succeeded(outcomes[1]).result
    assert [(entry["index"], entry["code"]) for entry in result["failed"]] == [(2, code)]
    assert SECRET not in json.dumps(result)
    assert [e.chunks[0].text for e in indexed(outcomes[1])] == ["one", "two", "three", "four"]
    for effect in indexed(outcomes[1]):
        assert np.allclose(
            effect.chunks[0].vector, FaultyEchoModel().embed([effect.chunks[0].text])[0]
        )
    succeeded(outcomes[0])
    succeeded(outcomes[2])


def test_job_fails_if_all_documents_fail() -> None:
    (outcome,) = run(FaultyEchoModel(), documents_job("echo!nan", " "))
    assert failed(outcome).code == "bad_vector"
    assert "all 2 documents" in failed(outcome).message
    assert not failed(outcome).retryable


def test_too_long_text_is_named_with_the_remedy() -> None:
    backend = RecordingModel()
    outcomes = run(backend, texts_job("fine", SECRET * 400), texts_job("neighbour"))
    assert failed(outcomes[0]).code == "too_long"
    assert "text 1" in failed(outcomes[0]).message
    assert "documents=" in failed(outcomes[0]).message
    assert not failed(outcomes[0]).retryable
    assert len(succeeded(outcomes[1]).result["vectors"]) == 1


def test_invalid_vector_fails_its_own_job() -> None:
    outcomes = run(
        FaultyEchoModel(), texts_job("ok", "echo!nan"), texts_job("ok"), texts_job("more")
    )
    assert failed(outcomes[0]).code == "bad_vector"
    assert [type(outcome) for outcome in outcomes[1:]] == [Succeeded, Succeeded]


@pytest.mark.parametrize(
    ("fault", "code", "retryable", "retry_after"),
    [
        ("unavailable", "backend_unavailable", True, None),
        ("rate-limited=7", "rate_limited", True, 7.0),
    ],
)
def test_backend_error_fails_all_jobs(
    fault: str, code: str, *, retryable: bool, retry_after: float | None
) -> None:
    outcomes = run(FaultyEchoModel(), documents_job("one", f"echo!{fault}"), texts_job("two"))
    for outcome in outcomes:
        assert failed(outcome).code == code
        assert failed(outcome).retryable is retryable
        assert failed(outcome).retry_after == retry_after


def test_refused_text_fails_its_own_job() -> None:
    outcomes = run(FaultyEchoModel(), texts_job("one"), texts_job("echo!refused"), texts_job("two"))
    assert [type(outcome) for outcome in outcomes] == [Succeeded, Failed, Succeeded]
    assert failed(outcomes[1]).code == "backend_refused"
    assert not failed(outcomes[1]).retryable


def test_vectors_before_an_outage_are_kept() -> None:
    class Failing(RecordingModel):
        call_tokens = 1

        def embed(self, texts: Sequence[str], *args: Any, **more: Any) -> Any:
            if len(self.calls) == 1:
                raise BackendUnavailable
            return super().embed(texts, *args, **more)

    outcomes = run(Failing(), texts_job("short"), texts_job("a longer one, so embedded first"))
    assert failed(outcomes[0]).retryable
    succeeded(outcomes[1])


@pytest.mark.parametrize(
    "payload",
    [
        None, [], "text", {}, {"texts": None}, {"texts": "abc"}, {"texts": []}, {"texts": [1]},
        {"texts": [""]}, {"texts": ["a\0"]}, {"texts": ["a"], "input": "image"},
        {"texts": ["a"], "documents": [{"text": "a"}]}, {"documents": [{"text": "a"}]},
        {"documents": {}, "source": "s"}, {"documents": [], "source": "s"},
        {"documents": [{"text": "a"}], "source": "s"},
        {"documents": [{"text": "a"}], "source": "s", "keep_text": "no"},
    ],
)  # fmt: skip
def test_invalid_payload_fails_alone(payload: Any) -> None:
    outcomes = run(FaultyEchoModel(), texts_job("before"), job(payload), texts_job("after"))
    assert failed(outcomes[1]).code == "bad_payload"
    assert not failed(outcomes[1]).retryable
    succeeded(outcomes[0])
    succeeded(outcomes[2])


def test_unknown_model_fails_and_known_model_is_named() -> None:
    model = FaultyEchoModel()
    routed = router("embedding", {"echo": model})
    handler = RoutedEmbedding(routed, lambda _: SPACE_ID, "echo")
    for name in (None, "echo", model.space.name):
        (outcome,) = handler([texts_job("a", model=name)], context_of())
        succeeded(outcome)
    outcomes = handler([texts_job("a", model=SECRET), texts_job("b", model=SECRET)], context_of())
    assert [failed(outcome).code for outcome in outcomes] == ["unknown_model", "unknown_model"]
    assert model.space.name in failed(outcomes[0]).message


def test_cancelled_job_is_not_embedded() -> None:
    backend = RecordingModel()
    cancelled_job = texts_job("cancelled_job", "shared")
    outcomes = run(
        backend, cancelled_job, texts_job("shared", "stays"), context=context_of(cancelled_job.id)
    )
    assert failed(outcomes[0]).code == "abandoned"
    assert sorted(backend.embedded) == ["shared", "stays"]


def test_job_cancelled_while_running_is_dropped_between_calls() -> None:
    cancelled_jobs = CancelledJobs()

    class Cancelling(RecordingModel):
        call_tokens = 300
        after: Callable[[], None] = staticmethod(lambda: None)

        def embed(self, texts: Sequence[str], *args: Any, **more: Any) -> Any:
            self.after()
            return super().embed(texts, *args, **more)

    backend = Cancelling()
    cancelled = documents_job(*[f"{n} " + "word " * 150 for n in range(10)])
    backend.after = lambda: cancelled_jobs.jobs.add(cancelled.id)  # type: ignore[method-assign]
    outcomes = run(
        backend, cancelled, texts_job("tiny"), context=Context(cancelled_jobs, {"alice": digest})
    )
    assert failed(outcomes[0]).code == "abandoned"
    assert failed(outcomes[0]).retryable
    succeeded(outcomes[1])
    assert len(backend.embedded) < 6


def test_unexpected_error_propagates() -> None:
    with pytest.raises(RuntimeError):
        run(FaultyEchoModel(), texts_job("echo!raise"))


def test_empty_batch_calls_no_model() -> None:
    backend = RecordingModel()
    assert run(backend) == []
    assert backend.calls == []


def test_reprs_show_no_text() -> None:
    for one in (texts_job(SECRET), documents_job(SECRET)):
        assert SECRET not in repr(plan_of(one))
        assert SECRET not in repr(run(FaultyEchoModel(), one))
