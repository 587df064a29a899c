"""Ties a Celery worker's start and end to the runtime: load models, beat, feed, drain."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
from celery import Celery, signals

from inference.temp_dir import TempDir, TempDirError, default_parent
from models.claims import LeasePolicy
from models.content import Content, PrivateContent, ShareableContent
from vestry.crypto import keyring_source
from vestry.crypto.keyring import KeyRing
from vestry.errors import KeyRingError
from vestry.lanes import LANES, Latency, Pool, Privacy
from workers import db
from workers.celery_integration import tasks
from workers.celery_integration.events import TaskEventPublisher
from workers.enabled_backends import enabled_catalogue
from workers.execution import components
from workers.execution.executor import Executor
from workers.execution.fetcher import JobFetcher
from workers.execution.finish import Finisher
from workers.execution.heartbeat import Heartbeat
from workers.execution.listener import LaneListener
from workers.execution.watchdog import StallWatchdog
from workers.isolation import network_guard, preflight
from workers.settings import Settings

log = logging.getLogger(__name__)

DRAIN_TIMEOUT_S = 10.0
"""How long the end of a process waits for its leases to be handed back."""


class WorkerLifecycle:
    """One worker process from `worker_init` to its end.

    Args:
        app: the worker's app.
        settings: the process's settings.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._runtime: JobFetcher | None = None
        self._listener: LaneListener | None = None
        self._liveness: StallWatchdog | None = None
        self._drain: threading.Thread | None = None
        self._kit: components.WorkerComponents | None = None
        self._temp_dir: TempDir | None = None

    def fetcher(self) -> JobFetcher:
        """The process's runtime, once it runs."""
        if self._runtime is None:
            raise RuntimeError("the worker has not started")
        return self._runtime

    def isolate(self, sender: Any, **_: Any) -> None:
        """What concerns the process as a whole, before anything of a job can be in it."""
        settings = self._settings
        if settings.privacy == Privacy.PRIVATE.value:
            preflight.disable_core_dumps()
            preflight.check_private_worker(
                os.environ,
                enabled_catalogue(settings),
                keys=settings.backend_keys,
                allowed=settings.local_networks,
            )
        try:
            self._temp_dir = TempDir(settings.scratch or default_parent(), str(sender.hostname))
        except TempDirError as error:
            raise SystemExit(f"no temporary directory: {error}") from None
        self._temp_dir.use_for_process()

    def block_external_connections(self, **_: Any) -> None:
        """Close the way out. Until now a model may have been fetched, where that was allowed."""
        settings = self._settings
        network_guard.block_external_connections(
            (settings.database_url, settings.broker_url),
            settings.local_networks,
            cloud=any(LANES[lane].pool is Pool.CLOUD for lane in self._lanes()),
        )

    def init(self, sender: Any, **_: Any) -> None:
        """Load models and start the threads, before the first message is taken."""
        settings = self._settings
        lanes = self._lanes()
        settings = settings.model_copy(update={"lanes": lanes})
        name = str(sender.hostname)
        pool = db.open_pool(settings.database, name, settings.lease_s, settings.slots * 2 + 3)
        content = content_for(settings)
        keyring = content.keyring if isinstance(content, PrivateContent) else None
        db.wait_for_database(pool)
        temp_dir = None if self._temp_dir is None else self._temp_dir.path
        kit = self._kit = components.build_components(settings, pool, keyring, temp_dir)
        heart = Heartbeat(
            _connector(settings, f"{name}-heart"),
            settings.lease_s,
            settings.heartbeat_s,
            settings.max_run_s,
            (content.evict_expired, kit.passage_search.evict_expired),
        )
        executor = Executor(
            pool=pool,
            content=content,
            handlers=kit.handlers,
            passage_search=kit.passage_search,
            policy=LeasePolicy(
                worker=name,
                privacy=str(settings.privacy or "shareable"),
                lease_s=settings.lease_s,
                max_run_s=settings.max_run_s,
            ),
            heartbeat=heart,
            finisher=Finisher(
                pool, content, settings.backoff_cap_s, settings.max_run_s, settings.lease_s
            ),
        )
        self._liveness = StallWatchdog(
            _connector(settings, f"{name}-liveness"),
            lanes,
            list(kit.handlers),
            heart,
            settings.deaf_s,
        )
        self._runtime = JobFetcher(
            executor, settings, TaskEventPublisher(self._app, name), self._liveness
        )
        interactive = [lane for lane in lanes if LANES[lane].latency == Latency.INTERACTIVE]
        if interactive:
            connect = _connector(settings, f"{name}-ear")
            self._listener = LaneListener(connect, interactive, self._runtime.notify)
        heart.start()

    def _lanes(self) -> tuple[str, ...]:
        return self._settings.lanes or tuple(self._app.amqp.queues.consume_from)

    def ready(self, **_: Any) -> None:
        """Messages flow: start looking for work, and tell the supervisor."""
        self.fetcher().start()
        if self._liveness is not None:
            self._liveness.start()
        if self._listener is not None:
            self._listener.start()
        if self._settings.ready_file is not None:
            Path(self._settings.ready_file).touch()
        log.info("worker ready")

    def shutting_down(self, **_: Any) -> None:
        """Drain on a thread: this runs inside a signal handler, where a lock may be held."""
        if self._runtime is not None and self._drain is None:
            if self._listener is not None:
                self._listener.stop()
            self._drain = threading.Thread(target=self._runtime.drain, name="drain")
            self._drain.start()

    def shutdown(self, **_: Any) -> None:
        """Wait for the drain before the process ends."""
        if self._drain is not None:
            self._drain.join(DRAIN_TIMEOUT_S)
        if self._kit is not None:
            self._kit.close()
        if self._temp_dir is not None:
            self._temp_dir.close()


def _connector(settings: Settings, name: str) -> Callable[[], psycopg.Connection[Any]]:
    """Makes connections that commit by themselves, for a thread that needs its own."""
    return lambda: psycopg.connect(
        settings.database,
        autocommit=True,
        **db.connection_options(name, settings.lease_s),
    )


def content_for(settings: Settings) -> Content:
    """How the settings' privacy class stores content.

    Raises:
        SystemExit: a private worker without a key ring that it can use.
    """
    if settings.privacy != "private":
        return ShareableContent()
    try:
        source = keyring_source.from_environment(settings.keyring)
        if source is None:
            raise SystemExit(
                "a private worker needs the key ring: VESTRY_KEYRING_FILE names its file"
            )
        return PrivateContent(KeyRing.read(source))
    except KeyRingError as error:
        raise SystemExit(f"the key ring cannot be used: {error}") from None


def _or_end(step: Callable[..., None]) -> Callable[..., None]:
    """The step, whose failure ends the process.

    Celery writes down what a signal's receiver raises, and goes on: a worker whose database was away
    for a moment as it began would take hints for ever and run nothing.
    """

    def run(*args: Any, **named: Any) -> None:
        try:
            step(*args, **named)
        except Exception as error:
            reason = f"the worker cannot start ({type(error).__name__})"
            log.critical("%s; its supervisor tries again", reason)
            raise SystemExit(reason) from None

    return run


def attach(app: Celery, settings: Settings) -> WorkerLifecycle:
    """Register the kinds' tasks and follow the worker's signals."""
    life = WorkerLifecycle(app, settings)
    tasks.register(app, life.fetcher)
    for step in (life.isolate, life.init, life.block_external_connections):
        signals.worker_init.connect(_or_end(step), weak=False)
    signals.worker_ready.connect(_or_end(life.ready), weak=False)
    signals.worker_shutting_down.connect(life.shutting_down, weak=False)
    signals.worker_shutdown.connect(life.shutdown, weak=False)
    return life


def set_nice(level: int) -> None:
    """Lower this process's priority by `level`."""
    if level:
        os.nice(level)
