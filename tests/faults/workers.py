"""Cheap workers: forks that claim, run and finish with the real code, and die where they are told to.

Each is the worker's own executor on the echo backend, without Celery, so that hundreds can be killed in
a minute. The points are wrapped around the code from outside; the code itself knows of none.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn
from uuid import UUID

import psycopg

from inference.backends.echo import EchoModel
from models import leases, transitions
from models.content import Content, PrivateContent, ShareableContent
from models.leases import Terms
from tasks.embedding import EmbeddingHandler
from tests.faults.ledger import History
from vestry.keyring import KeyRing
from workers import database, finisher
from workers.executor import Executor, Opened
from workers.finisher import Finisher
from workers.heartbeat import Heartbeat
from workers.kinds import declare_space
from workers.reconciler import Reconciler
from workers.settings import Settings

LEASE_S: Final = 1.0
HEARTBEAT_S: Final = 0.3
MAX_RUN_S: Final = 2.0
POINTS: Final = (
    "after the claim",
    "after inference",
    "in the finishing transaction",
    "after the commit",
    "before the commit's answer, not committed",
    "after a heartbeat",
)
"""Where a worker may be killed."""
RECONCILER_POINTS: Final = ("before the rescue's commit", "after the rescue")
FREEZE: Final = "frozen after inference"
CUT: Final = "the commit's answer is lost"
LIFE_S: Final = 1.5
"""A worker that is not killed ends in order after this long, and another takes its place."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where everything is.

    Attributes:
        url: by privacy class, the database login of its workers.
        control_url: the reconciler's.
        keyring: the private workers' key ring.
        history: what workers themselves have to tell.
    """

    url: dict[str, str]
    control_url: str
    keyring: Path
    history: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """What one worker is to do, and where it dies.

    Attributes:
        privacy: its class.
        seed: of its own choices.
        point: one of POINTS, FREEZE, CUT, or None to end in order.
        nth: at which time the point is passed.
    """

    privacy: str
    seed: int
    point: str | None
    nth: int


def fork(body: Callable[[], None]) -> int:
    """Run a function in a forked process; its id. It never returns into the caller's code."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        body()
        status = 0
    finally:
        os._exit(status)


def work(site: Site, plan: Plan) -> None:
    """Claim and run until the time is over or the point is reached."""
    rng = random.Random(plan.seed)
    name = f"lab-{os.getpid()}"
    url = site.url[plan.privacy]
    pool = database.open_pool(url, name, LEASE_S, 4)
    backend = EchoModel()
    space = declare_space(pool, backend.space)
    heart = Heartbeat(
        lambda: psycopg.connect(
            url, autocommit=True, **database.connection_options(f"{name}-heart", LEASE_S)
        ),
        LEASE_S,
        HEARTBEAT_S,
        MAX_RUN_S,
    )
    content: Content = (
        PrivateContent(KeyRing.load(site.keyring))
        if plan.privacy == "private"
        else ShareableContent()
    )
    executor = Executor(
        pool=pool,
        content=content,
        handlers={"embedding": EmbeddingHandler(backend, space)},
        terms=Terms(name, plan.privacy, LEASE_S, MAX_RUN_S),
        heart=heart,
        finisher=Finisher(pool, content, 0.2, MAX_RUN_S, LEASE_S),
    )
    arm(executor, plan, History(site.history))
    heart.start()
    lanes = [f"{plan.privacy}.{latency}.gpu" for latency in ("interactive", "bulk")]
    until = time.monotonic() + LIFE_S
    while time.monotonic() < until:
        if not _turn(executor, lanes, rng):
            time.sleep(0.01)


def _turn(executor: Executor, lanes: list[str], rng: random.Random) -> bool:
    """One batch of each lane, then what is suspected, alone; whether there was anything."""
    found = False
    for suspect in (False, True):
        for lane in lanes:
            try:
                opened = executor.claim(
                    lane, ["embedding"], limit=rng.choice((1, 8, 32)), suspect=suspect
                )
                if opened is not None:
                    found = True
                    executor.run(opened)
            except psycopg.Error:
                time.sleep(0.05)
    return found


def reconcile(site: Site, plan: Plan) -> None:
    """Reconcile until killed."""
    import threading  # noqa: PLC0415 - of the fork only

    settings = Settings(lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S, poll_s=0.1, keep_jobs_s=3600)
    rescue = transitions.rescue
    seen = 0

    def armed(conn: psycopg.Connection[Any], limit: int = 100) -> transitions.Rescued:
        nonlocal seen
        with conn.transaction():
            rescued = rescue(conn, limit)
            seen += bool(rescued.suspects or rescued.dead)
            if plan.point == RECONCILER_POINTS[0] and seen == plan.nth:
                die()
        if plan.point == RECONCILER_POINTS[1] and seen == plan.nth:
            die()
        transitions.admit(conn)  # the dispatcher's part: there is none here
        return rescued

    transitions.rescue = armed  # type: ignore[assignment]
    with psycopg.connect(site.control_url, autocommit=True) as conn:
        Reconciler(settings, threading.Event()).run(conn)


def die() -> NoReturn:
    """As a machine does that loses its power."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def arm(executor: Executor, plan: Plan, history: History) -> None:
    """Wrap the worker's steps so that the plan's point does what the plan says."""
    passed = 0
    spared = False
    token: UUID | None = None

    def here(point: str) -> bool:
        nonlocal passed
        if plan.point != point or spared:
            return False
        passed += 1
        if passed == plan.nth:
            history.write("point", point=point, pid=os.getpid(), token=token)
        return passed == plan.nth

    def begin(opened: Opened) -> None:
        # Twice killed while running alone is, by design, what a poison job looks like. Here each
        # suspect's worker is killed once at most: a dead innocent is then always the system's fault.
        nonlocal spared, token
        spared = (
            opened.lease.alone
        )  # until it is known better: the heartbeat's thread may be at a point
        token = opened.lease.id
        with executor.pool.connection() as conn:
            row = conn.execute(
                "SELECT max(crashes) FROM vestry.jobs WHERE lease_id = %s", [opened.lease.id]
            ).fetchone()
        spared = opened.lease.alone and row is not None and bool(row[0])

    _wrap_claim(begin, here)
    _wrap_handling(here, history)
    _wrap_finish(here)
    beat = leases.beat

    def beaten(conn: Any, tokens: Any, lease_s: float) -> Any:
        held = beat(conn, tokens, lease_s)
        if here("after a heartbeat"):
            die()
        return held

    leases.beat = beaten


Here = Callable[[str], bool]


def _wrap_claim(begin: Callable[[Opened], None], here: Here) -> None:
    claim = Executor.claim

    def claimed(self: Executor, *args: Any, **named: Any) -> Opened | None:
        opened = claim(self, *args, **named)
        if opened is not None:
            begin(opened)
            if here("after the claim"):
                die()
        return opened

    Executor.claim = claimed  # type: ignore[method-assign]


def _wrap_handling(here: Here, history: History) -> None:
    handle = Executor._handle

    def handled(self: Executor, opened: Opened) -> Any:
        outcomes = handle(self, opened)
        if here("after inference"):
            die()
        if here(FREEZE):
            jobs: list[UUID] = [job.id for job in opened.lease.jobs]
            history.write(
                "frozen", pid=os.getpid(), token=opened.lease.id, jobs=list(map(str, jobs))
            )
            os.kill(os.getpid(), signal.SIGSTOP)
        return outcomes

    Executor._handle = handled  # type: ignore[method-assign]


def _wrap_finish(here: Here) -> None:
    finish, once = finisher.finish, Finisher._once

    def finished(*args: Any, **named: Any) -> Any:
        done = finish(*args, **named)
        if here("in the finishing transaction"):
            die()
        return done

    def committed(self: Finisher, *args: Any) -> Any:
        with _commit_that_dies(here):
            done = once(self, *args)
        if here("after the commit"):
            die()
        return done

    finisher.finish = finished
    Finisher._once = committed  # type: ignore[method-assign]


@contextmanager
def _commit_that_dies(here: Here) -> Iterator[None]:
    """A COMMIT whose outcome the worker never learns."""
    commit = psycopg.Connection.commit

    def cut(self: psycopg.Connection[Any]) -> None:
        if here("before the commit's answer, not committed"):
            die()
        commit(self)
        if here(CUT):
            self.close()
            raise psycopg.OperationalError("the answer to COMMIT was lost")

    psycopg.Connection.commit = cut  # type: ignore[method-assign]
    try:
        yield
    finally:
        psycopg.Connection.commit = commit  # type: ignore[method-assign]
