"""Egress records: committed before the request, refused for private jobs, never changed or removed."""

from __future__ import annotations

import datetime as dt
import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from psycopg_pool import ConnectionPool

from inference.errors import CallCancelled
from inference.protocol import BackendConfig
from inference.remote.client import httpx2_client
from inference.remote.egress import on_behalf_of
from models.bootstrap import ROLES, SCHEMA_OWNER
from vestry.admin import audit
from workers.execution.egress_log import NotRecorded, recorder
from workers.stack.dev_stack import DevStack

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
RECORD = "SELECT vestry.record_egress_v1('openai', 10, %s::uuid[])"


@pytest.fixture
def cloud(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_cloud"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def pool(clean: DevStack) -> Iterator[ConnectionPool[Any]]:
    with ConnectionPool(clean.database_url("vestry_cloud"), min_size=1, timeout=30) as pool:
        yield pool


def job(admin: psycopg.Connection[Any], privacy: str, pool: str, state: str = "running") -> UUID:
    job_id = uuid4()
    admin.execute(
        """INSERT INTO vestry.jobs (id, kind, owner, privacy, latency, pool, state, lease_id,
                                    finished_at)
           VALUES (%s, 'generation', 'ann', %s, 'bulk', %s, %s, %s, %s)""",
        [job_id, privacy, pool, state, uuid4() if state == "running" else None,
         "now" if state == "cancelled" else None],
    )  # fmt: skip
    return job_id


def records(admin: psycopg.Connection[Any]) -> list[tuple[Any, ...]]:
    return admin.execute(
        "SELECT privacy, locality, backend, bytes, job_ids FROM vestry.egress ORDER BY id"
    ).fetchall()


def test_egress_of_a_running_shareable_job_is_recorded(admin: Any, cloud: Any) -> None:
    running_job = job(admin, "shareable", "cloud")
    cloud.execute(RECORD, [[running_job]])
    assert records(admin) == [("shareable", "cloud", "openai", 10, [running_job])]


def test_egress_of_any_other_job_is_refused(admin: Any, cloud: Any) -> None:
    running_job = job(admin, "shareable", "cloud")
    for jobs, code in (
        ([job(admin, "private", "gpu")], "VY007"),
        ([running_job, job(admin, "private", "gpu")], "VY007"),
        ([job(admin, "shareable", "gpu")], "VY007"),
        ([uuid4()], "VY007"),
        ([], "VY007"),
        ([job(admin, "shareable", "cloud", "cancelled")], "VY008"),
    ):
        with pytest.raises(psycopg.Error) as caught:
            cloud.execute(RECORD, [jobs])
        assert caught.value.sqlstate == code
    assert records(admin) == []


def test_batch_with_one_cancelled_job_is_recorded(admin: Any, cloud: Any) -> None:
    cloud.execute(
        RECORD, [[job(admin, "shareable", "cloud"), job(admin, "shareable", "cloud", "cancelled")]]
    )
    assert len(records(admin)) == 1


@pytest.mark.parametrize("role", ROLES)
def test_no_role_changes_or_removes_a_record(
    clean: DevStack, admin: Any, cloud: Any, role: str
) -> None:
    cloud.execute(RECORD, [[job(admin, "shareable", "cloud")]])
    before = records(admin)
    with psycopg.connect(clean.database_url(role), autocommit=True) as conn:
        for statement in (
            "UPDATE vestry.egress SET bytes = 0",
            "DELETE FROM vestry.egress",
            """INSERT INTO vestry.egress (privacy, locality, backend, bytes, job_ids)
               VALUES ('private', 'cloud', 'x', 1, ARRAY[gen_random_uuid()])""",
        ):
            refused = False
            try:
                conn.execute(statement)
            except (psycopg.errors.InsufficientPrivilege, psycopg.errors.CheckViolation):
                refused = True
            # For the schema's owner row security hides every row, without an error.
            assert refused or role == SCHEMA_OWNER
    assert records(admin) == before


@contextmanager
def server(on_request: Callable[[], None]) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            on_request()
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


def test_record_is_committed_before_the_request_arrives(
    clean: DevStack, admin: Any, pool: ConnectionPool[Any]
) -> None:
    seen: list[list[tuple[Any, ...]]] = []
    running_job, other = job(admin, "shareable", "cloud"), job(admin, "private", "gpu")
    with server(lambda: seen.append(records(admin))) as url:
        config = BackendConfig("openai", "cloud", url=url, egress=recorder(pool))
        with httpx2_client(config) as client:
            with on_behalf_of([running_job]):
                client.post(f"{url}/v1", content=b"x" * 1000)
            for jobs in ([other], [uuid4()]):
                with on_behalf_of(jobs), pytest.raises(NotRecorded):
                    client.post(f"{url}/v1", content=b"private")
            cancelled = job(admin, "shareable", "cloud", "cancelled")
            with on_behalf_of([cancelled]), pytest.raises(CallCancelled):
                client.post(f"{url}/v1", content=b"cancelled")
            pool.close()
            with on_behalf_of([running_job]), pytest.raises(NotRecorded):
                client.post(f"{url}/v1", content=b"x")
    assert len(seen) == 1
    ((_, _, backend, size, jobs),) = seen[0]
    assert (backend, jobs) == ("openai", [running_job])
    assert 1000 < size < 2000
    del clean


def test_database_error_is_not_chained_to_the_refusal(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(NotRecorded) as caught:
        recorder(pool)("openai", 1, [uuid4()])
    assert caught.value.__suppress_context__


def report(clean: DevStack) -> audit.AuditReport:
    with psycopg.connect(clean.database_url("vestry_operator")) as conn:
        return audit.report(conn, LONG_AGO, dt.datetime.now(dt.UTC) + dt.timedelta(minutes=1))


def receipt(admin: Any, job_id: UUID, privacy: str) -> None:
    admin.execute(
        """INSERT INTO vestry.receipts (job_id, lease_id, privacy, attempt, outcome, served_backend,
                                        locality)
           VALUES (%s, gen_random_uuid(), %s, 1, 'succeeded', 'openai', 'cloud')""",
        [job_id, privacy],
    )


def test_report_totals_requests_and_is_clean_without_private_egress(
    clean: DevStack, admin: Any, cloud: Any
) -> None:
    assert report(clean).clean
    first, second = job(admin, "shareable", "cloud"), job(admin, "shareable", "cloud")
    for jobs in ([first], [first, second], [second]):
        cloud.execute(RECORD, [jobs])
    receipt(admin, first, "shareable")
    summary = report(clean)
    assert summary.clean
    (egress,) = summary.egress
    assert (egress.requests, egress.jobs, egress.bytes) == (3, 2, 30)
    assert (egress.privacy, egress.backend, egress.locality) == (
        "shareable", "openai", "cloud",
    )  # fmt: skip
    with psycopg.connect(clean.database_url("vestry_operator")) as conn:
        before = audit.report(conn, LONG_AGO, LONG_AGO + dt.timedelta(days=90))
    assert (before.egress, before.private_requests, before.clean) == ((), 0, True)


def test_report_counts_a_call_without_a_record(clean: DevStack, admin: Any) -> None:
    receipt(admin, job(admin, "shareable", "cloud"), "shareable")
    assert (report(clean).unrecorded, report(clean).clean) == (1, False)


def test_report_counts_a_private_receipt_of_a_cloud(clean: DevStack, admin: Any) -> None:
    receipt(admin, job(admin, "private", "gpu"), "private")
    assert (report(clean).private_receipts, report(clean).clean) == (1, False)


@pytest.mark.parametrize(
    "tampering",
    ["ALTER TABLE vestry.egress DROP CONSTRAINT egress_privacy_check",
     "GRANT DELETE ON vestry.egress TO vestry_control",
     "ALTER TABLE vestry.egress NO FORCE ROW LEVEL SECURITY",
     "CREATE POLICY sweeping ON vestry.egress FOR DELETE TO vestry_owner USING (true)"],
)  # fmt: skip
def test_report_detects_a_record_that_is_not_guarded(clean: DevStack, tampering: str) -> None:
    with psycopg.connect(clean.superuser_url) as conn:
        conn.execute(tampering)
        assert not audit.report(conn, LONG_AGO, dt.datetime.now(dt.UTC)).clean
        conn.rollback()
    assert report(clean).clean
