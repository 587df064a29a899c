"""Lifecycle of a worker process, tied to Celery's signals: isolate, load models, start, drain."""

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
from vestry.crypto.keyring import KeyRing, key_source_from_environment
from vestry.crypto.owner_keys import OwnerKeys
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
"""Longest wait for the drain at the end of a process."""


class WorkerLifecycle:
    """One worker process from `worker_init` to its end.

    Args:
        app: the worker's app.
        settings: the process's settings.
    """

    def __init__(self, app: Celery, settings: Settings) -> None:
        self._app = app
        self._settings = settings
        self._fetcher: JobFetcher | None = None
        self._listener: LaneListener | None = None
        self._watchdog: StallWatchdog | None = None
        self._drain: threading.Thread | None = None
        self._components: components.WorkerComponents | None = None
        self._temp_dir: TempDir | None = None

    def fetcher(self) -> JobFetcher:
        """The process's fetcher.

        Raises:
            RuntimeError: the worker has not started.
        """
        if self._fetcher is None:
            raise RuntimeError("the worker has not started")
        return self._fetcher

    def isolate(self, sender: Any, **_: Any) -> None:
        """Check and isolate the process before it holds any content."""
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
            self._temp_dir = TempDir(settings.temp_dir or default_parent(), str(sender.hostname))
        except TempDirError as error:
            raise SystemExit(f"no temporary directory: {error}") from None
        self._temp_dir.use_for_process()

    def block_external_connections(self, **_: Any) -> None:
        """Block external connections, once models are loaded: some may have been downloaded."""
        settings = self._settings
        network_guard.block_external_connections(
            (settings.database_url, settings.broker_url),
            settings.local_networks,
            cloud=any(LANES[lane].pool is Pool.CLOUD for lane in self._lanes()),
        )

    def init(self, sender: Any, **_: Any) -> None:
        """Load models and start the heartbeat, before Celery consumes messages."""
        settings = self._settings
        lanes = self._lanes()
        settings = settings.model_copy(update={"lanes": lanes})
        name = str(sender.hostname)
        pool = db.open_pool(settings.database, name, settings.lease_s, settings.slots * 2 + 3)
        content = content_for(settings)
        keys = content.keys if isinstance(content, PrivateContent) else OwnerKeys(None)
        db.wait_for_database(pool)
        temp_dir = None if self._temp_dir is None else self._temp_dir.path
        parts = components.build_components(settings, pool, keys, temp_dir)
        self._components = parts
        heartbeat = Heartbeat(
            _connector(settings, f"{name}-heartbeat"),
            settings.lease_s,
            settings.heartbeat_s,
            settings.max_run_s,
            (content.evict_expired,),
        )
        executor = Executor(
            pool=pool,
            content=content,
            handlers=parts.handlers,
            passage_search=parts.passage_search,
            policy=LeasePolicy(
                worker=name,
                privacy=str(settings.privacy or "shareable"),
                lease_s=settings.lease_s,
                max_run_s=settings.max_run_s,
            ),
            heartbeat=heartbeat,
            finisher=Finisher(
                pool, content, settings.backoff_cap_s, settings.max_run_s, settings.lease_s
            ),
        )
        self._watchdog = StallWatchdog(
            _connector(settings, f"{name}-watchdog"),
            lanes,
            list(parts.handlers),
            heartbeat,
            settings.stall_timeout_s,
        )
        self._fetcher = JobFetcher(
            executor, settings, TaskEventPublisher(self._app, name), self._watchdog
        )
        interactive = [lane for lane in lanes if LANES[lane].latency == Latency.INTERACTIVE]
        if interactive:
            connect = _connector(settings, f"{name}-listener")
            self._listener = LaneListener(connect, interactive, self._fetcher.notify)
        heartbeat.start()

    def ready(self, **_: Any) -> None:
        """Start fetching, once Celery consumes messages, and touch the ready file."""
        self.fetcher().start()
        if self._watchdog is not None:
            self._watchdog.start()
        if self._listener is not None:
            self._listener.start()
        if self._settings.ready_file is not None:
            Path(self._settings.ready_file).touch()
        log.info("worker ready")

    def shutting_down(self, **_: Any) -> None:
        """Start the drain on a thread: this is a signal handler, during which a lock may be held."""
        if self._fetcher is not None and self._drain is None:
            if self._listener is not None:
                self._listener.stop()
            self._drain = threading.Thread(target=self._fetcher.drain, name="drain")
            self._drain.start()

    def shutdown(self, **_: Any) -> None:
        """Wait for the drain, then close models and the temporary directory."""
        if self._drain is not None:
            self._drain.join(DRAIN_TIMEOUT_S)
        if self._components is not None:
            self._components.close()
        if self._temp_dir is not None:
            self._temp_dir.close()

    def _lanes(self) -> tuple[str, ...]:
        return self._settings.lanes or tuple(self._app.amqp.queues.consume_from)


def attach(app: Celery, settings: Settings) -> WorkerLifecycle:
    """Register the tasks of all kinds, and connect a lifecycle to Celery's signals."""
    lifecycle = WorkerLifecycle(app, settings)
    tasks.register(app, lifecycle.fetcher)
    for step in (lifecycle.isolate, lifecycle.init, lifecycle.block_external_connections):
        signals.worker_init.connect(_or_exit(step), weak=False)
    signals.worker_ready.connect(_or_exit(lifecycle.ready), weak=False)
    signals.worker_shutting_down.connect(lifecycle.shutting_down, weak=False)
    signals.worker_shutdown.connect(lifecycle.shutdown, weak=False)
    return lifecycle


def set_nice(level: int) -> None:
    """Lower this process's priority by `level`."""
    if level:
        os.nice(level)


def _connector(settings: Settings, name: str) -> Callable[[], psycopg.Connection[Any]]:
    """A function that opens autocommit connections, for a thread that needs its own."""
    return lambda: psycopg.connect(
        settings.database,
        autocommit=True,
        **db.connection_options(name, settings.lease_s),
    )


def content_for(settings: Settings) -> Content:
    """The content store of the settings' privacy class.

    Raises:
        SystemExit: a private worker has no usable key ring.
    """
    if settings.privacy != "private":
        return ShareableContent()
    try:
        source = key_source_from_environment(settings.keyring)
        if source is None:
            raise SystemExit(
                "a private worker needs the key ring: set VESTRY_KEYRING_FILE to its file"
            )
        return PrivateContent(KeyRing.read(source))
    except KeyRingError as error:
        raise SystemExit(f"the key ring cannot be used: {error}") from None


def _or_exit(step: Callable[..., None]) -> Callable[..., None]:
    """Wrap a step so that its failure ends the process.

    Celery logs an error of a signal's receiver and goes on: a worker that failed to start would consume
    hints for ever and run nothing.
    """

    def run(*args: Any, **named: Any) -> None:
        try:
            step(*args, **named)
        except Exception as error:
            reason = f"the worker cannot start ({type(error).__name__})"
            log.critical("%s; its supervisor restarts it", reason)
            raise SystemExit(reason) from None

    return run
