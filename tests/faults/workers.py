"""Forked workers: they claim, run and finish with the real code, and are killed at a chosen failpoint.

Each is a worker's executor on the echo backend, without Celery, so that hundreds can be killed in a
minute. Like a real worker it receives hints from its lanes' queues, and polls.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import psycopg
import redis

from models.claims import LeasePolicy
from models.content import Content, PrivateContent, ShareableContent
from tasks.embedding import EmbeddingHandler
from tests.faults.failpoints import arm_worker
from tests.faults.ledger import History
from tests.faulty_echo import FaultyEchoModel
from vestry.crypto.keyring import KeyRing
from workers import db
from workers.celery_integration.transport import parse_hint
from workers.execution import heartbeat
from workers.execution.components import declare_space
from workers.execution.executor import Executor
from workers.execution.finish import Finisher
from workers.execution.heartbeat import Heartbeat
from workers.settings import key_prefix

LEASE_S: Final = 1.0
HEARTBEAT_S: Final = 0.3
MAX_RUN_S: Final = 3.0
OVERRUN_GRACE_S: Final = 1.0
LIFETIME_S: Final = 2.5
"""A worker that is not killed ends in order after this time, and is replaced."""
RELEASE_S: Final = 10.0
"""Longest time that an ending worker tries to release unconfirmed claims."""
MEMORY_BYTES: Final = 384 * 1024 * 1024
"""Memory that a worker may allocate beyond its initial size."""
HOUR_S: Final = 3600.0
PR_SET_PDEATHSIG: Final = 1
"""From linux/prctl.h."""


@dataclass(frozen=True, slots=True)
class LabConfig:
    """Logins and files of the laboratory.

    Attributes:
        url: by privacy class, the database login of its workers.
        broker: by privacy class, the broker login of its workers.
        control_url: the reconciler's and the dispatcher's login.
        dispatcher_url: the dispatcher's broker login.
        keyring: the private workers' key ring.
        history: file in which processes record their actions at failpoints.
    """

    url: dict[str, str]
    broker: dict[str, str]
    control_url: str
    dispatcher_url: str
    keyring: Path
    history: Path


@dataclass(frozen=True, slots=True)
class Plan:
    """One process of the laboratory.

    Attributes:
        role: a worker's privacy class, `reconciler` or `dispatcher`.
        seed: of its own choices.
        point: where it is killed or frozen, or an answer to it is lost; None to end in order.
        nth: pass of that point at which it acts.
        skew_s: error of its clock.
        mutation: the mechanism that is missing; None for none.
        hints_only: it does not poll, and claims one job for each hint.
    """

    role: str
    seed: int
    point: str | None
    nth: int
    skew_s: float = 0.0
    mutation: str | None = None
    hints_only: bool = False


UNEXPECTED_ERROR_EXIT: Final = 4
"""Exit status of a process that ended by an unexpected error."""


def fork(body: Callable[[], None]) -> int:
    """Run a function in a forked process, and exit there; returns the process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        _end_with_parent()
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        body()
        status = 0
    except (psycopg.Error, redis.RedisError):
        status = 3  # a server is unavailable
    except MemoryError:
        pass  # poison has exhausted the memory
    except Exception:
        status = UNEXPECTED_ERROR_EXIT
        traceback.print_exc()
    finally:
        os._exit(status)


def _end_with_parent() -> None:
    """Let the kernel kill this process when the laboratory ends, where it supports that."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def set_clock(skew_s: float) -> None:
    """Shift this process's clock."""
    if skew_s:
        true_time, true_time_ns = time.time, time.time_ns
        time.time = lambda: true_time() + skew_s
        time.time_ns = lambda: true_time_ns() + int(skew_s * 1e9)


def work(config: LabConfig, plan: Plan) -> None:
    """Claim and run batches for LIFE_S, or until the point is reached."""
    set_clock(plan.skew_s)
    limit_memory()
    rng = random.Random(plan.seed)
    name = f"lab-{os.getpid()}"
    executor = _executor(config, plan, name)
    arm_worker(executor, plan.point, plan.nth, History(config.history))
    executor.heartbeat.start()
    lanes = [f"{plan.role}.{latency}.gpu" for latency in ("interactive", "bulk")]
    with redis.Redis.from_url(
        config.broker[plan.role], socket_timeout=0.5, socket_connect_timeout=0.5
    ) as broker:
        fetcher = Fetcher(executor, lanes, broker, rng, hints_only=plan.hints_only)
        until = time.monotonic() + LIFETIME_S
        while time.monotonic() < until:
            if not fetcher.fetch_each_lane():
                time.sleep(0.01)
        until += RELEASE_S
        while executor.heartbeat.unconfirmed.pending() and time.monotonic() < until:
            executor.heartbeat.release_unconfirmed()
            time.sleep(0.05)


def limit_memory() -> None:
    """Limit this process to MEMORY_BYTES more than it has, and disable core dumps."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _executor(config: LabConfig, plan: Plan, name: str) -> Executor:
    heartbeat.OVERRUN_GRACE_S = OVERRUN_GRACE_S
    url = config.url[plan.role]
    pool = db.open_pool(url, name, LEASE_S, 4)
    backend = FaultyEchoModel()
    space = declare_space(pool, backend.space)
    content: Content = (
        PrivateContent(KeyRing.load(config.keyring))
        if plan.role == "private"
        else ShareableContent()
    )
    renewal = Heartbeat(
        lambda: psycopg.connect(
            url, autocommit=True, **db.connection_options(f"{name}-heartbeat", LEASE_S)
        ),
        LEASE_S,
        HEARTBEAT_S,
        MAX_RUN_S,
    )
    return Executor(
        pool=pool,
        content=content,
        handlers={"embedding": EmbeddingHandler(backend, space)},
        policy=LeasePolicy(name, plan.role, LEASE_S, MAX_RUN_S),
        heartbeat=renewal,
        finisher=Finisher(pool, content, 0.2, MAX_RUN_S, LEASE_S),
    )


class Fetcher:
    """Fetch batches as a worker does: by hint, by polling, and quarantined jobs exclusively."""

    def __init__(
        self,
        executor: Executor,
        lanes: list[str],
        broker: redis.Redis,
        rng: random.Random,
        *,
        hints_only: bool,
    ) -> None:
        self._executor = executor
        self._lanes = lanes
        self._broker = broker
        self._rng = rng
        self._hints_only = hints_only

    def fetch_each_lane(self) -> bool:
        """Run one batch of each lane, then a quarantined job of each; whether there was any."""
        ran = False
        for quarantined in (False, True):
            for lane in self._lanes:
                try:
                    ran = self._fetch(lane, quarantined=quarantined) or ran
                except psycopg.Error:
                    time.sleep(0.05)
        return ran

    def _fetch(self, lane: str, *, quarantined: bool) -> bool:
        limit = 1 if self._hints_only else self._rng.choice((1, 8, 32))
        hint = None
        if not quarantined and (self._hints_only or self._rng.random() < 0.5):
            hint = self._hint(lane)
            if hint is None and self._hints_only:
                return False
        batch = self._executor.claim(
            lane, ["embedding"], hint=hint, limit=limit, quarantined=quarantined
        )
        if batch is not None:
            self._executor.run(batch)
        return batch is not None

    def _hint(self, lane: str) -> UUID | None:
        """The job of a message in a lane's queue, which may be forged; None if there is none."""
        try:
            body = self._broker.rpop(key_prefix(lane.partition(".")[0]) + lane)
        except (redis.RedisError, OSError):
            return None
        if not isinstance(body, bytes):
            return None
        try:
            parsed = parse_hint(json.loads(body))
        except (ValueError, RecursionError):
            return None
        return None if parsed is None or parsed[0] != "embedding" else parsed[1]
