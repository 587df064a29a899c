"""One guarantee at a time, each with nothing else there that could keep it in its stead.

A worker's runtime, the dispatcher and the reconciler run in this process, on handlers of the tests'.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import psycopg
import pytest
import redis

from models import leases, transitions
from models.leases import Terms
from tasks.protocol import (
    Context,
    Handler,
    IndexDocument,
    Job,
    Outcome,
    Succeeded,
)
from tests.echo_stack import eventually
from tests.worker_runtime import LANE, runtime
from vestry import Document, Embedding, Vestry
from workers import dispatcher, reconciler
from workers.database import open_pool
from workers.devstack import DevStack
from workers.dispatcher import Dispatcher
from workers.finishing import finish
from workers.reconciler import Reconciler
from workers.settings import Settings, key_prefix

VECTORS = Succeeded({"vectors": [[1.0]], "space": "s"})


@pytest.fixture
def vestry(clean: DevStack) -> Iterator[Vestry]:
    with Vestry(clean.database_url("vestry_producer"), clean.keyring) as client:
        yield client


@pytest.fixture
def conn(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_producer"), autocommit=True) as caller:
        yield caller


@pytest.fixture
def control(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.database_url("vestry_control"), autocommit=True) as conn:
        yield conn


@pytest.fixture
def admin(clean: DevStack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(clean.superuser_url, autocommit=True) as conn:
        yield conn


def submit(vestry: Vestry, conn: Any, *texts: str, **options: Any) -> list[UUID]:
    options = {"owner": "ann", "privacy": "shareable"} | options
    jobs = vestry.enqueue_many(conn, [Embedding(texts=[text]) for text in texts], **options)
    return [job.id for job in jobs]


def told(conn: Any, job: UUID) -> tuple[str, int]:
    row = conn.execute("SELECT state, attempt FROM vestry.jobs WHERE id = %s", [job]).fetchone()
    return (row[0], row[1])


def text_of(job: Job) -> str:
    return str(job.payload["texts"][0])


def at_once(batch: Sequence[Job], _: Context) -> list[Outcome]:
    return [VECTORS for _ in batch]


# -- a worker --------------------------------------------------------------------------------------


def test_a_job_without_a_hint_is_found(clean: DevStack, vestry: Vestry, conn: Any) -> None:
    with runtime(clean, at_once) as worker:
        worker.start()
        (job,) = submit(vestry, conn, "no dispatcher runs")
        eventually(lambda: told(conn, job) == ("succeeded", 1), within=30)


def test_a_job_longer_than_its_lease_is_run_once(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    ran = []

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        ran.extend(batch)
        time.sleep(5)
        return [VECTORS for _ in batch]

    with runtime(clean, slow, lease_s=3, heartbeat_s=0.3) as worker:
        worker.start()
        (job,) = submit(vestry, conn, "long")
        until = time.monotonic() + 40
        while told(conn, job)[0] != "succeeded":
            assert transitions.rescue(control).suspects == 0
            assert time.monotonic() < until
            time.sleep(0.1)
    assert len(ran) == 1


def test_a_suspect_runs_while_nothing_else_does(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    spans: dict[str, tuple[float, float]] = {}

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun = time.monotonic()
        time.sleep(0.15)
        spans.update({text_of(job): (begun, time.monotonic()) for job in batch})
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *(str(n) for n in range(10)))
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [jobs[0]])
    with runtime(clean, slow, batch_jobs=1) as worker:
        worker.start()
        eventually(lambda: len(spans) == 10)
    alone = spans.pop("0")
    assert all(end <= alone[0] or begun >= alone[1] for begun, end in spans.values())
    # The others did run beside each other, and did not all have to wait for the suspect.
    others = sorted(spans.values())
    assert any(a[1] > b[0] for a, b in itertools.pairwise(others))


def test_a_suspect_gets_its_turn_beside_long_work_that_never_lets_up(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    def long(batch: Sequence[Job], _: Context) -> list[Outcome]:
        # The first is shorter: no two ever end together.
        time.sleep(0.5 if text_of(batch[0]) == "0" else 1.0)
        return [VECTORS for _ in batch]

    jobs = submit(vestry, conn, *(str(n) for n in range(60)))
    suspect = submit(vestry, conn, "suspect")[0]
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [suspect])
    with runtime(clean, long, batch_jobs=1, slots=2, batch_s=0.1) as worker:
        worker.start()
        eventually(lambda: told(conn, suspect)[0] == "succeeded", within=25)
        assert told(conn, jobs[-1])[0] == "queued"


def test_a_suspect_is_found_behind_the_mark_of_the_ordinary_line(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    """Its turn is the lane's when it was rescued; the line goes on, and its mark with it."""
    first = submit(vestry, conn, "a")[0]
    with psycopg.connect(clean.database_url("vestry_shareable")) as lost:
        assert leases.claim(lost, Terms("lost", "shareable", 0.001, 600), LANE, ["embedding"])
    eventually(lambda: transitions.rescue(control).suspects == 1)
    with runtime(clean, at_once) as worker:
        claim, marks = worker._executor.claim, worker._executor.marks
        for _ in range(3):
            submit(vestry, conn, "b")
            opened = claim(LANE, ["embedding"])
            assert opened is not None
            worker._executor.run(opened)
            marks[LANE, "embedding", False]._full_at = 0.0
        assert claim(LANE, ["embedding"]) is None
        opened = claim(LANE, ["embedding"], suspect=True)
        assert opened is not None
        assert [job.id for job in opened.lease.jobs] == [first]
        worker._executor.run(opened)


def test_nothing_begins_while_a_suspect_runs(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any
) -> None:
    begun: dict[str, float] = {}
    ended: dict[str, float] = {}

    def slow(batch: Sequence[Job], _: Context) -> list[Outcome]:
        begun.update({text_of(job): time.monotonic() for job in batch})
        time.sleep(0.5)
        ended.update({text_of(job): time.monotonic() for job in batch})
        return [VECTORS for _ in batch]

    (job,) = submit(vestry, conn, "suspect")
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [job])
    with runtime(clean, slow) as worker:
        worker.start()
        eventually(lambda: "suspect" in begun)
        submit(vestry, conn, "later")
        eventually(lambda: "later" in ended)
    assert begun["later"] >= ended["suspect"]


def test_a_hint_for_a_lane_that_is_not_served_is_left_alone(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    (job,) = submit(vestry, conn, "x", latency="interactive")
    with runtime(clean, at_once) as worker:
        assert worker.hinted("shareable.interactive.gpu", "embedding", job) is None
        assert told(conn, job) == ("queued", 0)
        (served,) = submit(vestry, conn, "y")
        assert worker.hinted(LANE, "embedding", served) is not None
    assert told(conn, served) == ("succeeded", 1)


def test_a_batch_claimed_while_draining_goes_back_unrun(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def never(_: Sequence[Job], __: Context) -> list[Outcome]:
        raise AssertionError

    (job,) = submit(vestry, conn, "x")
    with runtime(clean, never) as worker:
        worker.drain()
        assert worker.hinted(LANE, "embedding", job) is None
        assert told(conn, job) == ("queued", 0)
        # The signal may also come between the look and the claim.
        assert worker._step(LANE, "embedding") is None
        assert told(conn, job) == ("queued", 0)


def run_once(stack: DevStack, handler: Handler) -> None:
    with runtime(stack, handler) as worker:
        opened = worker._executor.claim(LANE, ["embedding"])
        assert opened is not None
        worker._executor.run(opened)


def test_a_handler_that_raises_fails_one_job_and_spoils_no_neighbour(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def touchy(batch: Sequence[Job], _: Context) -> list[Outcome]:
        if any(text_of(job) == "bad" for job in batch):
            raise ZeroDivisionError
        return [VECTORS for _ in batch]

    before, bad, after = submit(vestry, conn, "before", "bad", "after", max_attempts=1)
    run_once(clean, touchy)
    assert told(conn, before) == told(conn, after) == ("succeeded", 1)
    assert told(conn, bad) == ("dead", 1)


def test_a_handler_that_answers_for_too_few_is_not_believed(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    jobs = submit(vestry, conn, "a", "b", max_attempts=1)
    run_once(clean, lambda _, __: [VECTORS])
    assert [told(conn, job) for job in jobs] == [("succeeded", 1)] * 2


def test_a_result_that_cannot_be_stored_spoils_no_neighbour(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def odd(batch: Sequence[Job], _: Context) -> list[Outcome]:
        (ref,) = next(job.documents for job in batch if job.documents)
        nowhere = IndexDocument(ref.document_id, ref.generation, "s", 999, b"", {}, [], True)
        count = {"documents": 1, "embedded": 1, "unchanged": 0, "superseded": 0, "chunks": 0}
        return [Succeeded(count, (nowhere,)) if job.documents else VECTORS for job in batch]

    before, after = submit(vestry, conn, "before", "after")
    (bad,) = vestry.enqueue_many(
        conn,
        [Embedding(documents=[Document("x", "id")], source="s")],
        owner="ann",
        privacy="shareable",
    )
    run_once(clean, odd)
    assert told(conn, before) == told(conn, after) == ("succeeded", 1)
    assert vestry.status(bad).error is not None
    assert vestry.status(bad).error[0] == "not_storable"  # type: ignore[index]


# -- dispatcher and reconciler ---------------------------------------------------------------------


@contextmanager
def looping(stack: DevStack, loop: Callable[[psycopg.Connection[Any]], None], stop: Any) -> Any:
    with psycopg.connect(stack.database_url("vestry_control"), autocommit=True) as conn:
        thread = threading.Thread(target=loop, args=(conn,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(10)


@pytest.mark.parametrize("lost", ["the whole queue", "one hint of two"])
def test_a_lost_hint_is_given_again(
    clean: DevStack, vestry: Vestry, conn: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(dispatcher, "REHINT_S", 1.0 if lost == "one hint of two" else 3600.0)
    monkeypatch.setattr(dispatcher, "REHINT_EMPTY_S", 3600.0 if lost == "one hint of two" else 1.0)
    stop, queue = threading.Event(), key_prefix("shareable") + LANE
    settings = Settings(
        database_url=clean.database_url("vestry_control"), broker_url=clean.broker_url("dispatcher")
    )
    first, _ = submit(vestry, conn, "a", "b")
    made = Dispatcher(settings, stop)
    with (
        redis.Redis.from_url(clean.broker_url("shareable")) as broker,
        looping(clean, made.run, stop),
    ):
        eventually(lambda: broker.llen(queue) >= 2, within=30)
        if lost == "one hint of two":
            assert str(first).encode() in broker.rpop(queue)  # type: ignore[operator]
        else:
            broker.delete(queue)
        hinted = lambda: b"".join(broker.lrange(queue, 0, -1))  # noqa: E731
        eventually(lambda: str(first).encode() in hinted(), within=30)


def test_the_queue_is_kept_at_its_window(clean: DevStack, vestry: Vestry, conn: Any) -> None:
    stop, queue = threading.Event(), key_prefix("shareable") + LANE
    settings = Settings(
        database_url=clean.database_url("vestry_control"), broker_url=clean.broker_url("dispatcher")
    )
    window = settings.window * settings.slots
    submit(vestry, conn, *map(str, range(200)))
    made = Dispatcher(settings, stop)
    with (
        redis.Redis.from_url(clean.broker_url("shareable")) as broker,
        looping(clean, made.run, stop),
    ):
        for _ in range(3):
            eventually(lambda: broker.llen(queue) == window, within=30)
            taken = broker.rpop(queue, 3)
            assert taken is not None
        eventually(lambda: broker.llen(queue) == window, within=30)
        time.sleep(0.6)
        assert broker.llen(queue) == window


def test_leases_are_given_a_whole_lease_once_the_database_was_away(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, control: Any
) -> None:
    stop = threading.Event()
    up_s = admin.execute(
        "SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())::float8"
    ).fetchone()[0]
    # A database that was up for longer than a lease when the reconciler came has given its grace.
    assert Reconciler(Settings(lease_s=up_s, heartbeat_s=0.01), stop)._grace(control) == 0
    # One that was not has some left.
    longer = Settings(lease_s=up_s + 1000)
    assert 900 < Reconciler(longer, stop)._grace(control) <= 1000

    jobs = submit(vestry, conn, "a", "b")
    with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
        assert leases.claim(worker, Terms("test", "shareable", 0.001, 600), LANE, ["embedding"])
    settings = Settings(lease_s=4.0, heartbeat_s=0.1, poll_s=0.05)
    made = Reconciler(settings, stop)
    assert made._grace(control) == 0
    # Now its connection was lost and made again.
    begun = time.monotonic()
    with looping(clean, made.run, stop):
        time.sleep(0.6)
        assert [told(conn, job)[0] for job in jobs] == ["running"] * 2
        eventually(lambda: told(conn, jobs[0])[0] == "queued", within=30)
    assert time.monotonic() - begun >= 4.0


def test_a_pruning_that_waits_for_a_lock_keeps_no_lease_from_its_rescue(
    clean: DevStack, vestry: Vestry, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconciler, "PRUNE_EVERY_S", 0.0)
    stop = threading.Event()
    job = submit(vestry, conn, "a")[0]
    made = Reconciler(Settings(lease_s=0.5, heartbeat_s=0.1, poll_s=0.05), stop)

    with psycopg.connect(clean.superuser_url) as holding:
        holding.execute("LOCK TABLE vestry.private_results IN ACCESS EXCLUSIVE MODE")
        waits = "SELECT count(*) FROM pg_locks WHERE NOT granted"
        with looping(clean, made.run, stop):
            eventually(lambda: holding.execute(waits).fetchone() == (1,))
            with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
                terms = Terms("test", "shareable", 0.001, 600)
                assert leases.claim(worker, terms, LANE, ["embedding"])
            eventually(lambda: told(conn, job)[0] == "queued")


def test_a_job_that_an_open_transaction_holds_keeps_no_other_from_its_rescue(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, control: Any
) -> None:
    jobs = submit(vestry, conn, *"abcd")
    with psycopg.connect(clean.database_url("vestry_shareable")) as worker:
        for _ in range(2):
            terms = Terms("test", "shareable", 0.001, 600)
            assert leases.claim(worker, terms, LANE, ["embedding"], limit=2)
    control.execute("SET lock_timeout = '10s'")
    left = "SELECT count(*) FROM vestry.leases"
    with psycopg.connect(clean.superuser_url) as holding:
        holding.execute("SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE", [jobs[0]])
        assert transitions.rescue(control).suspects == 3
        assert admin.execute(left).fetchone() == (1,)
        assert transitions.rescue(control).suspects == 0
    assert transitions.rescue(control).suspects == 1
    assert admin.execute(left).fetchone() == (0,)


@pytest.mark.parametrize("kept", ["paused", "out of time"])
def test_a_suspect_that_may_not_run_stops_nobody(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, kept: str
) -> None:
    job = submit(vestry, conn, "a")[0]
    admin.execute("UPDATE vestry.jobs SET suspect = true WHERE id = %s", [job])
    with runtime(clean, at_once) as worker:
        assert worker._suspects() == [(LANE, "embedding")]
        if kept == "paused":
            admin.execute("UPDATE vestry.lanes SET paused_at = now() WHERE lane = %s", [LANE])
        else:
            admin.execute("UPDATE vestry.jobs SET deadline = now() WHERE id = %s", [job])
        assert worker._suspects() == []


def test_a_process_that_is_frozen_in_a_transaction_keeps_its_locks_no_longer_than_a_lease(
    clean: DevStack, vestry: Vestry, conn: Any, control: Any
) -> None:
    job = submit(vestry, conn, "a")[0]
    url = clean.database_url("vestry_shareable")
    lock = "SELECT FROM vestry.jobs WHERE id = %s FOR UPDATE"
    control.execute("SET statement_timeout = '30s'")
    let_go = []

    def freeze() -> None:
        with (
            open_pool(url, "frozen", lease_s=1.0, size=1) as pool,
            pool.connection() as frozen,
            frozen.pipeline(),
        ):
            frozen.execute(lock, [job]).fetchone()
            control.execute(lock, [job])
            let_go.append(job)
            frozen.execute(lock, [job]).fetchone()

    with pytest.raises(psycopg.Error):
        freeze()
    assert let_go


def test_a_finish_that_stood_still_is_made_again(
    clean: DevStack, vestry: Vestry, conn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit(vestry, conn, "a", max_attempts=1)[0]
    froze = []

    def freezing(*args: Any, **named: Any) -> Any:
        if not froze:
            froze.append(job)
            raise psycopg.errors.TransactionTimeout
        return finish(*args, **named)

    with runtime(clean, at_once) as worker:
        monkeypatch.setattr("workers.finisher.finish", freezing)
        worker.start()
        eventually(lambda: told(conn, job) == ("succeeded", 1))
    assert froze


def test_a_process_that_comes_back_was_not_ended_by_its_job(
    clean: DevStack, vestry: Vestry, conn: Any, admin: Any, control: Any
) -> None:
    (job,) = submit(vestry, conn, "x")
    admin.execute("UPDATE vestry.jobs SET suspect = true")
    crashes = "SELECT crashes FROM vestry.jobs WHERE id = %s"
    with runtime(clean, at_once) as worker:
        for overran in (False, True):
            opened = worker._executor.claim(LANE, ["embedding"], suspect=True)
            assert opened is not None
            admin.execute(
                """UPDATE vestry.leases SET expires_at = now() - interval '1 s',
                     max_until = CASE WHEN %s THEN now() - interval '1 s' ELSE max_until END""",
                [overran],
            )
            assert transitions.rescue(control).suspects == 1
            assert admin.execute(crashes, [job]).fetchone() == (1,)
            finished = worker._executor.run(opened)
            assert finished.states == {job: "refused"}
            # Who ran for as long as a job may is not forgiven.
            assert admin.execute(crashes, [job]).fetchone() == (1 if overran else 0,)
    assert told(conn, job) == ("queued", 2)


def test_a_result_that_cannot_even_be_written_spoils_no_neighbour(
    clean: DevStack, vestry: Vestry, conn: Any
) -> None:
    def odd(batch: Sequence[Job], _: Context) -> list[Outcome]:
        half = Succeeded({"vectors": [[1.0]], "space": "\ud800"})
        return [half if text_of(job) == "bad" else VECTORS for job in batch]

    good, bad = submit(vestry, conn, "good", "bad")
    run_once(clean, odd)
    assert told(conn, good) == ("succeeded", 1)
    assert vestry.status(bad).error is not None
    assert vestry.status(bad).error[0] == "not_storable"  # type: ignore[index]
