"""The Celery app of one privacy class: `celery -A workers.app worker -Q private.interactive.gpu`.

Celery carries hints, and events for Flower. Jobs, their order, leases, retries and results are in
Postgres; docs/celery.md defines Celery's terms for this project.
"""

from __future__ import annotations

import logging
from typing import Any

from celery import Celery
from celery.worker.control import Panel
from kombu import Exchange, Queue

from vestry.lanes import LANES, Pool
from workers import log_redaction
from workers.celery_integration import transport, worker_lifecycle
from workers.settings import key_prefix, read_settings

READ_ONLY_PANEL = frozenset(
    {
        "active", "active_queues", "clock", "conf", "enable_events", "hello", "heartbeat", "ping",
        "query_task", "registered", "report", "reserved", "revoked", "scheduled", "stats",
    }
)  # fmt: skip
"""Remote-control commands that Flower's worker page uses. All others are removed: `add_consumer` could
subscribe a worker to any queue, `pool_restart` and `shutdown` stop it."""


def make_app(broker: str, privacy: str, *, remote_control: bool = True) -> Celery:
    """Make the app of one privacy class, in that class's broker namespace.

    Args:
        broker: `redis://user:password@host:port/0`.
        privacy: `private` or `shareable`.
        remote_control: whether workers of this app answer the commands of READ_ONLY_PANEL.
    """
    transport.install()
    app = Celery("vestry", set_as_current=False)
    app.conf.update(
        broker_url=broker,
        broker_transport_options={
            "global_keyprefix": key_prefix(privacy),
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "health_check_interval": 10,
            # No acknowledgement in the broker: the lease is the acknowledgement, and a lost hint costs
            # one second. Emulated acknowledgements took two round trips a job.
            "ack_emulation": False,
        },
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # One queue per lane, on the anonymous exchange: a named exchange silently drops messages once
        # its bindings are wiped with the broker.
        task_queues=[
            Queue(lane.name, Exchange(""), routing_key=lane.name)
            for lane in LANES.values()
            if lane.privacy == privacy
        ],
        task_create_missing_queues=False,
        task_default_queue=f"{privacy}.bulk.gpu",
        task_acks_late=False,
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        result_backend=None,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        task_publish_retry=False,
        task_send_sent_event=True,
        worker_send_task_events=True,
        worker_consumer="workers.celery_integration.events:BatchedEventConsumer",
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=remote_control,
        enable_utc=True,
    )
    for command in set(Panel.data) - READ_ONLY_PANEL:
        del Panel.data[command]
    return app


def _from_environment() -> Celery:
    settings = read_settings("worker")
    log_redaction.configure(settings.log_level)
    log_redaction.own_process()
    if settings.privacy is None:
        logging.getLogger(__name__).warning("VESTRY_PRIVACY is not set; using shareable")
    # A cloud worker, which has external network access, accepts only hints from the broker.
    cloud = any(LANES[name].pool == Pool.CLOUD for name in settings.lanes)
    app = make_app(settings.broker, settings.privacy or "shareable", remote_control=not cloud)
    app.set_current()
    worker_lifecycle.attach(app, settings)
    return app


_app: Celery | None = None


def __getattr__(name: str) -> Any:
    """Make `workers.app.app` on first access, by a Celery command, instead of on import."""
    global _app  # noqa: PLW0603 - one app per process
    if name not in {"app", "celery"}:
        raise AttributeError(name)
    if _app is None:
        _app = _from_environment()
    return _app
