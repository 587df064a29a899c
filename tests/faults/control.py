"""Forked reconcilers and dispatchers: the real loops, killed at failpoints."""

from __future__ import annotations

import threading
from typing import Any

import psycopg

from tests.faults.failpoints import Trigger, arm_dispatcher, arm_reconciler
from tests.faults.ledger import History
from tests.faults.workers import HEARTBEAT_S, LEASE_S, LabConfig, Plan, set_clock
from workers import db
from workers.dispatcher import Dispatcher
from workers.reconciler import Reconciler
from workers.settings import Settings


def reconcile(config: LabConfig, plan: Plan, keep_jobs_s: float) -> None:
    """Reconcile until killed."""
    set_clock(plan.skew_s)
    settings = Settings(
        lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S, poll_s=0.1, keep_jobs_s=keep_jobs_s
    )
    arm_reconciler(Trigger(plan.point, plan.nth, History(config.history)))
    with _connect(config, "reconciler") as conn:
        Reconciler(settings, threading.Event()).run(conn)


def dispatch(config: LabConfig, plan: Plan) -> None:
    """Dispatch until killed."""
    set_clock(plan.skew_s)
    settings = Settings(
        database_url=config.control_url,
        broker_url=config.dispatcher_url,
        lease_s=LEASE_S,
        heartbeat_s=HEARTBEAT_S,
    )
    arm_dispatcher(Trigger(plan.point, plan.nth, History(config.history)))
    dispatcher = Dispatcher(settings, threading.Event())
    with _connect(config, "dispatcher") as conn:
        dispatcher.run(conn)


def _connect(config: LabConfig, name: str) -> psycopg.Connection[Any]:
    return psycopg.connect(
        config.control_url, autocommit=True, **db.connection_options(name, LEASE_S)
    )
