"""Published routes: enqueue follows them, and queued jobs are moved when one changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from models import backend_health
from tests.waiting import eventually
from vestry import Embedding, Flow, Generation, Ocr, Vestry
from workers import route_publisher
from workers.dispatcher import Dispatcher
from workers.route_publisher import RoutePublisher
from workers.settings import Settings
from workers.stack.dev_stack import DevStack

FAILURE = {"threshold": 1, "cooldown_s": 60.0, "max_cooldown_s": 60.0, "retry_after_s": None}


@pytest.fixture
def conn(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url(), autocommit=True) as conn:
        yield conn


@pytest.fixture
def worker(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_cloud"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def publisher(
    clean: DevStack, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[RoutePublisher, psycopg.Connection[Any]]]:
    monkeypatch.setattr(route_publisher, "REFRESH_EVERY_S", 0.0)
    settings = Settings(embedding_backend="echo", backends={"openai": None, "anthropic": None})
    with psycopg.connect(clean.database_url("vestry_control"), autocommit=True) as conn:
        routes = RoutePublisher(settings)
        routes.refresh(conn)
        yield routes, conn


def lanes(conn: psycopg.Connection[Any]) -> dict[str, int]:
    return dict(conn.execute("SELECT lane, count(*) FROM vestry.jobs GROUP BY lane").fetchall())


def enqueue(clean: DevStack, conn: Any, job: Any, **more: Any) -> Any:
    options = {"owner": "o", "privacy": "shareable"} | more
    with Vestry(clean.database_url(), clean.keyring) as vestry:
        return vestry.enqueue(conn, job, **options)


@pytest.mark.usefixtures("publisher")
def test_enqueue_puts_a_job_into_the_lane_of_its_route(
    clean: DevStack, conn: psycopg.Connection[Any]
) -> None:
    for job, more, lane in (
        (Generation("x"), {}, "shareable.bulk.cloud"),
        (Generation("x"), {"task": "no such task"}, "shareable.bulk.cloud"),
        (Generation("x"), {"tier": "offline"}, "shareable.bulk.gpu"),
        (Generation("x"), {"tier": "gold", "latency": "interactive"}, "shareable.interactive.cloud"),
        (Generation("x"), {"privacy": "private", "quality": "best"}, "private.bulk.gpu"),
        (Embedding(texts=["x"]), {}, "shareable.bulk.gpu"),
    ):  # fmt: skip
        before = lanes(conn)
        enqueue(clean, conn, job, **more)
        after = lanes(conn)
        assert {name for name in after if after[name] != before.get(name, 0)} == {lane}, more


def test_enqueue_without_routes_uses_the_local_lane(
    clean: DevStack, conn: psycopg.Connection[Any]
) -> None:
    enqueue(clean, conn, Generation("x"))
    assert lanes(conn) == {"shareable.bulk.gpu": 1}


def test_queued_jobs_move_when_a_cloud_becomes_unavailable_and_back(
    clean: DevStack, conn: psycopg.Connection[Any], worker: Any, publisher: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("models.routes.MOVE_BATCH_ROWS", 3)
    routes, control = publisher
    with Vestry(clean.database_url(), clean.keyring) as vestry:
        common: dict[str, Any] = {"owner": "o", "privacy": "shareable"}
        vestry.enqueue_many(conn, [Generation(f"{n}") for n in range(10)], **common)
        vestry.enqueue_many(conn, [Generation("g")] * 4, task="study-guide", **common)
        vestry.enqueue_many(conn, [Generation("p", model="gpt-4o-mini")] * 2, **common)
    assert lanes(conn) == {"shareable.bulk.cloud": 16}
    for backend in ("openai", "anthropic"):
        backend_health.record_failure(worker, backend, "backend_unavailable", **FAILURE)
    routes.refresh(control)
    routes.refresh(control)
    # Jobs that only a cloud serves, or that name a cloud model, stay in the cloud lane.
    assert lanes(conn) == {"shareable.bulk.gpu": 10, "shareable.bulk.cloud": 6}
    for backend in ("openai", "anthropic"):
        backend_health.record_success(worker, backend)
    routes.refresh(control)
    routes.refresh(control)
    assert lanes(conn) == {"shareable.bulk.cloud": 16}


def test_no_private_route_leads_to_the_cloud(
    clean: DevStack, publisher: Any, conn: psycopg.Connection[Any]
) -> None:
    _, control = publisher
    rows = conn.execute(
        "SELECT DISTINCT pool FROM vestry.routes WHERE privacy = 'private'"
    ).fetchall()
    assert {row[0] for row in rows} == {"gpu", "cpu"}
    with pytest.raises(psycopg.errors.CheckViolation):
        control.execute("UPDATE vestry.routes SET pool = 'cloud' WHERE privacy = 'private'")
    enqueue(clean, conn, Generation("x"), privacy="private")
    with (
        psycopg.connect(clean.superuser_url) as root,
        pytest.raises(psycopg.errors.CheckViolation),
    ):
        root.execute("UPDATE vestry.jobs SET pool = 'cloud' WHERE privacy = 'private'")


def test_child_job_gets_the_lane_of_its_route_when_it_is_released(
    clean: DevStack, conn: psycopg.Connection[Any], publisher: Any, worker: Any
) -> None:
    routes, control = publisher
    job = enqueue(clean, conn, Flow(Ocr(b"%PDF-1.4 x"), [Generation("then")]))
    with psycopg.connect(clean.superuser_url, autocommit=True) as root:
        backend_health.record_failure(worker, "openai", "x", **FAILURE)
        backend_health.record_failure(worker, "anthropic", "x", **FAILURE)
        routes.refresh(control)
        root.execute(
            "UPDATE vestry.jobs SET state = 'running', start_tag = NULL, lease_id = gen_random_uuid()"
            " WHERE id = %s", [job.id],
        )  # fmt: skip
        root.execute(
            "UPDATE vestry.jobs SET state = 'succeeded', lease_id = NULL,"
            " finished_at = vestry.clock() WHERE id = %s", [job.id],
        )  # fmt: skip
        child = root.execute(
            "SELECT state, pool FROM vestry.jobs WHERE id = %s", [job.then[0].id]
        ).fetchone()
    assert child == ("queued", "gpu")


def test_dispatcher_publishes_routes(clean: DevStack, conn: psycopg.Connection[Any]) -> None:
    settings = Settings(
        database_url=clean.database_url("vestry_control"),
        broker_url=clean.broker_url("dispatcher"),
        backends={"openai": None},
        embedding_backend="echo",
    )
    stop = threading.Event()
    dispatcher = Dispatcher(settings, stop)
    with psycopg.connect(settings.database, autocommit=True) as control:
        running = threading.Thread(target=dispatcher.run, args=(control,))
        running.start()
        try:
            query = "SELECT FROM vestry.routes WHERE pool = 'cloud'"
            eventually(lambda: conn.execute(query).fetchall(), within=10)
        finally:
            stop.set()
            running.join(10)
