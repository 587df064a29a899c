"""Invalid jobs, forged hints and clock changes: one clear error each, and no other job is affected."""

from __future__ import annotations

import base64
import datetime as dt
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import redis

from tests.job_helpers import RawPayload
from tests.stacks import ECHO
from tests.waiting import BULK_S, eventually
from vestry import Document, Embedding, InvalidInput, JobFailed, Vestry
from vestry.db.operations import uuid7
from vestry.jobs.embedding import EmbeddingResult, IndexResult
from vestry.jobs.results import JobRef
from workers.home import Home
from workers.settings import key_prefix
from workers.stack.background import BackgroundStack
from workers.stack.postgres import SUPERUSER, PostgresServer
from workers.stack.valkey import ValkeyServer

pytestmark = pytest.mark.stack(ECHO)

LONG = "x" * 3000
"""Longer than the model's input limit."""


# -- the library and the workers -------------------------------------------------------------------


def texts(*values: str, **options: Any) -> Embedding:
    return Embedding(texts=list(values), **options)


BAD_JOBS: dict[str, tuple[Any, str, str]] = {
    "NaN": (texts("fine", "echo!nan"), "bad_vector", "text 1"),
    "wrong dimension": (texts("echo!wrong-dimension"), "bad_vector", "text 0"),
    "zero": (texts("echo!zero"), "bad_vector", "text 0"),
    "too long": (texts("fine", "fine", LONG), "too_long", "text 2"),
    "unknown model": (texts("a", model="none"), "unknown_model", "echo"),
    "not JSON": (RawPayload(b"{'a'"), "bad_payload", "JSON object"),
    "not an object": (RawPayload(b'["a"]'), "bad_payload", "JSON object"),
    "neither": (RawPayload(b"{}"), "bad_payload", "texts or documents"),
    "empty text": (RawPayload(b'{"texts": ["a", " "]}'), "bad_payload", "text 1"),
    "NUL": (RawPayload(b'{"texts": ["\\u0000"]}'), "bad_payload", "text 0"),
    "lone surrogate": (RawPayload(b'{"texts": ["\\ud800"]}'), "bad_payload", "text 0"),
    "no text": (RawPayload(b'{"texts": [1]}'), "bad_payload", "text 0"),
    "odd input": (RawPayload(b'{"texts": ["a"], "input": "x"}'), "bad_payload", "input"),
    "documents without references": (
        RawPayload(b'{"documents": [{"text": "a"}], "source": "s"}'), "bad_payload", "documents",
    ),
}  # fmt: skip


@pytest.mark.parametrize("privacy", ["private", "shareable"])
def test_bad_jobs_fail_with_their_error_and_no_neighbour_fails(
    vestry: Vestry, conn: Any, privacy: str
) -> None:
    lane = f"{privacy}.bulk.gpu"
    common: dict[str, Any] = {"owner": "ann", "privacy": privacy}
    vestry.pause_lane(lane)
    good, bad = [], {}
    for name, (job, _, _) in BAD_JOBS.items():
        good.append(vestry.enqueue(conn, texts(f"beside {name}"), **common))
        bad[name] = vestry.enqueue(conn, job, **common)
    vestry.resume_lane(lane)

    for name, (_, code, part) in BAD_JOBS.items():
        with pytest.raises(JobFailed) as failed:
            vestry.wait(bad[name], timeout=BULK_S)
        assert (failed.value.code, part in failed.value.message) == (code, True), failed.value
        assert vestry.status(bad[name]).state == "dead"
    for job in good:
        result = vestry.wait(job, timeout=BULK_S)
        assert isinstance(result, EmbeddingResult)
        assert len(result.vectors) == 1
        assert vestry.status(job).attempt == 1


@pytest.mark.parametrize("fault", ["nan", "wrong-dimension", "zero", "bad-request"])
def test_bad_document_is_reported_and_its_neighbours_are_indexed(
    vestry: Vestry, conn: Any, fault: str
) -> None:
    documents = [Document("good", id="0"), Document(f"echo!{fault}", id="1"),
                 Document("good too", id="2")]  # fmt: skip
    job = vestry.enqueue(
        conn, Embedding(documents=documents, source="s"), owner=f"bad-{fault}", privacy="private"
    )
    result = vestry.wait(job, timeout=BULK_S)
    assert isinstance(result, IndexResult)
    assert [row.index for row in result.failed] == [1]
    hits = vestry.search("good", owner=f"bad-{fault}", privacy="private")
    assert {hit.document for hit in hits} == {"0", "2"}


def test_one_bad_job_of_many_is_reported_and_none_is_enqueued(vestry: Vestry, conn: Any) -> None:
    def jobs() -> Iterator[Embedding]:
        yield texts("a")
        yield texts("b", "\x00")
        yield texts("c")

    with conn.transaction():
        with pytest.raises(InvalidInput) as refused:
            vestry.enqueue_many(conn, jobs(), owner="many", privacy="private")
        after = vestry.enqueue(conn, texts("d"), owner="many", privacy="private")
    assert refused.value.field.endswith("texts[1]")
    stored = conn.execute("SELECT id FROM vestry.jobs WHERE owner = 'many'").fetchall()
    assert stored == [(after.id,)]


def test_privacy_has_no_default(vestry: Vestry, conn: Any) -> None:
    with pytest.raises(TypeError, match="privacy"):
        vestry.enqueue(conn, texts("a"), owner="ann")  # type: ignore[call-arg]
    for privacy in (None, "", "Private", "public"):
        with pytest.raises(InvalidInput) as refused:
            vestry.enqueue(conn, texts("a"), owner="ann", privacy=privacy)  # type: ignore[arg-type]
        assert refused.value.field == "privacy"


ENQUEUE = """SELECT * FROM vestry.enqueue_jobs_v1(
  %(owner)s, 'private', 'bulk', p_ids => %(ids)s,
  p_kinds => array_fill('embedding'::text, %(n)s), p_pools => array_fill('gpu'::text, %(n)s),
  p_costs => array_fill(1, %(n)s), p_keep_payload => array_fill(true, %(n)s),
  p_result_ttl_s => array_fill(60, %(n)s), p_key_hashes => array_fill(NULL::bytea, %(n)s),
  p_content_hashes => array_fill(NULL::bytea, %(n)s),
  p_key_id => %(key)s, p_sealed => %(sealed)s::bytea[], p_texts => %(texts)s::text[])"""
"""The SQL contract, as a producer without the library would call it."""


def call(conn: Any, **arguments: Any) -> list[UUID]:
    content = arguments.get("sealed") or arguments.get("texts") or [None]
    ids = [uuid7() for _ in content]
    conn.execute(
        ENQUEUE,
        {"owner": "raw", "ids": ids, "n": [len(ids)], "key": None, "sealed": None, "texts": None}
        | arguments,
    )
    return ids


def key_of(conn: Any, owner: str) -> UUID:
    """The id of an owner's data key, read with a producer's login in the owner's context."""
    with conn.transaction():
        conn.execute("SELECT set_config('vestry.owners', (ARRAY[%s::text])::text, true)", [owner])
        query = "SELECT key_id FROM vestry.owner_keys WHERE owner = %s"
        (key,) = conn.execute(query, [owner]).fetchone()
    assert isinstance(key, UUID)
    return key


def test_unsealed_private_payload_is_refused_with_the_whole_call(vestry: Vestry, conn: Any) -> None:
    owner = "refused"
    vestry.wait(vestry.enqueue(conn, texts("a"), owner=owner, privacy="private"), timeout=BULK_S)
    key = key_of(conn, owner)
    header = b"\x01" + key.bytes
    refused = {
        "text": {"texts": ['{"texts": ["in the clear"]}']},
        "bytes in the clear": {
            "key": key,
            "sealed": [b'{"texts": ["in the clear, and long"]}' * 2],
        },
        "one of two": {"key": key, "sealed": [header + bytes(60), b"in the clear" * 9]},
        "another key": {"key": uuid4(), "sealed": [header + bytes(60)]},
        "nothing": {"key": key, "sealed": None},
    }
    for name, arguments in refused.items():
        with pytest.raises(psycopg.Error) as error:
            call(conn, owner=owner, **arguments)
        assert error.value.sqlstate == "VY002", name
        assert "clear" not in str(error.value)
    stored = conn.execute("SELECT count(*) FROM vestry.jobs WHERE owner = %s", [owner]).fetchone()
    assert stored == (1,)


def test_forged_payload_fails_and_its_neighbour_succeeds(vestry: Vestry, conn: Any) -> None:
    good = vestry.enqueue(conn, texts("a"), owner="raw", privacy="private")
    key = key_of(conn, "raw")
    (forged,) = call(conn, key=key, sealed=[b"\x01" + key.bytes + bytes(60)])
    vestry.wait(good, timeout=BULK_S)
    with pytest.raises(JobFailed) as failed:
        vestry.wait(JobRef(forged, created=True), timeout=BULK_S)
    assert failed.value.code == "unsealable"


# -- messages --------------------------------------------------------------------------------------


def message(lane: str, job: object, **replaced: Any) -> str:
    """A hint as Celery writes it, with some fields replaced."""
    name = str(job)
    body = base64.b64encode(json.dumps([[name], {}, {}]).encode()).decode()
    return json.dumps(
        {
            "body": body,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {"lang": "py", "task": "embedding", "id": name},
            "properties": {
                "correlation_id": name,
                "delivery_info": {"exchange": "", "routing_key": lane},
                "body_encoding": "base64",
                "delivery_tag": str(uuid4()),
            },
        }
        | replaced
    )


def test_forged_messages_end_no_worker(up: BackgroundStack, vestry: Vestry, conn: Any) -> None:
    lane = "private.interactive.gpu"
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    other = vestry.enqueue(
        conn, texts("of the other class"), owner="ann", privacy="shareable", run_at=later
    )
    not_due = vestry.enqueue(
        conn, texts("not yet"), owner="ann", privacy="private", latency="interactive", run_at=later
    )
    messages: dict[str, str | bytes] = {
        "not JSON": "garbage{",
        "not text": b"\xff\xfe\x00\x80",
        "a registered type with nonsense": '{"__type__": "uuid", "__value__": {"hex": "no"}}',
        "a list": "[1]",
        "a number": "7",
        "no properties": '{"body": "x"}',
        "no headers": message(lane, uuid4(), headers=None),
        "headers of another shape": message(lane, uuid4(), headers=[1]),
        "another task": message(lane, uuid4(), headers={"task": "os.system", "id": str(uuid4())}),
        "an invalid id": message(lane, "rm -rf /"),
        "a body that is not base64": message(lane, uuid4(), body="%%%%%"),
        "a body that is not JSON": message(lane, uuid4(), body="e3t7"),
        "a body of another shape": message(lane, uuid4(), body="Nw=="),
        "pickle": message(lane, uuid4(), **{"content-type": "application/x-python-serialize"}),
        "an unknown job": message(lane, uuid4()),
        "a job of the other class": message(lane, other.id),
        "a job that is not due": message(lane, not_due.id),
    }
    worker = up.pid("private-interactive-gpu")
    server = ValkeyServer(Home(up.home))
    with redis.Redis.from_url(server.url("private")) as broker:
        for name, content in messages.items():
            broker.lpush(key_prefix("private") + lane, content)
            job = vestry.enqueue(
                conn, texts(name), owner="ann", privacy="private", latency="interactive"
            )
            vestry.wait(job, timeout=BULK_S)
            until = time.monotonic() + 10
            while broker.llen(key_prefix("private") + lane):
                assert time.monotonic() < until, f"{name}: the message stays in the queue"
                time.sleep(0.02)
    assert up.pid("private-interactive-gpu") == worker
    assert vestry.status(other).state == vestry.status(not_due).state == "queued"
    vestry.cancel([other, not_due])


# -- the clock -------------------------------------------------------------------------------------


@contextmanager
def clock_set_back(up: BackgroundStack) -> Iterator[None]:
    """Set the database's clock an hour back."""
    replace = """CREATE OR REPLACE FUNCTION vestry.clock() RETURNS timestamptz
      LANGUAGE sql VOLATILE PARALLEL SAFE SET search_path = pg_catalog AS 'SELECT {}'"""
    url = PostgresServer(Home(up.home)).url(SUPERUSER)
    with psycopg.connect(url, autocommit=True) as admin:
        admin.execute(replace.format("clock_timestamp() - interval ''1 hour''"))
        try:
            row = admin.execute("SELECT now() - vestry.clock() > interval '59 min'").fetchone()
            assert row == (True,)
            yield
        finally:
            admin.execute(replace.format("clock_timestamp()"))


def test_clock_set_back_and_forward_loses_and_repeats_no_job(
    up: BackgroundStack, vestry: Vestry, conn: Any
) -> None:
    common: dict[str, Any] = {"owner": "clock", "privacy": "private"}

    def index(n: int) -> JobRef:
        entry = Document(f"entry {n} echo!sleep=0.05", id=str(n))
        return vestry.enqueue(conn, Embedding(documents=[entry], source="s"), **common)

    def running(job: JobRef) -> bool:
        return vestry.status(job).state == "running"

    before = [index(n) for n in range(20)]
    across = vestry.enqueue(conn, texts("echo!sleep=3"), latency="interactive", **common)
    eventually(lambda: running(across))
    with clock_set_back(up):
        during = [index(n) for n in range(20, 40)]
        failing = vestry.enqueue(conn, texts("echo!nan"), latency="interactive", **common)
        for job in (across, *before, *during):
            vestry.wait(job, timeout=BULK_S)
        with pytest.raises(JobFailed) as failed:
            vestry.wait(failing, timeout=BULK_S)
        assert failed.value.code == "bad_vector"
        again = vestry.enqueue(conn, texts("echo!sleep=3"), latency="interactive", **common)
        eventually(lambda: running(again))
    after = [index(n) for n in range(40, 50)]
    for job in (again, *after):
        vestry.wait(job, timeout=BULK_S)

    jobs = [across, again, *before, *during, *after]
    assert {status.state for status in vestry.statuses(jobs)} == {"succeeded"}
    duplicates = conn.execute(
        """SELECT job_id FROM vestry.receipts WHERE job_id = ANY (%s) AND outcome = 'succeeded'
           GROUP BY job_id HAVING count(*) > 1""", [[job.id for job in jobs]]
    ).fetchall()  # fmt: skip
    assert duplicates == []
    hits = vestry.search("entry", limit=100, **common)
    assert sorted(int(hit.document) for hit in hits) == list(range(50))
