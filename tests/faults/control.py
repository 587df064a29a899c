"""Forked reconcilers and dispatchers: the real loops, which die where they are told to."""

from __future__ import annotations

import threading
from typing import Any
from uuid import UUID

import psycopg

from models import transitions
from tests.faults import points
from tests.faults.ledger import History
from tests.faults.workers import HEARTBEAT_S, LEASE_S, Plan, Site, set_clock
from workers import db
from workers.dispatcher import Dispatcher
from workers.reconciler import Reconciler
from workers.settings import Settings


def reconcile(site: Site, plan: Plan, keep_jobs_s: float) -> None:
    """Reconcile until killed."""
    set_clock(plan.skew_s)
    settings = Settings(
        lease_s=LEASE_S, heartbeat_s=HEARTBEAT_S, poll_s=0.1, keep_jobs_s=keep_jobs_s
    )
    here = points.Counter(plan.point, plan.nth, History(site.history))
    rescue = transitions.rescue

    def armed(conn: psycopg.Connection[Any], limit: int = 100) -> transitions.Rescued:
        with conn.transaction():
            rescued = rescue(conn, limit)
            if (rescued.quarantined or rescued.dead) and here(points.RESCUING):
                points.die()
            if rescued.dead and here(points.CONDEMNING):
                points.die()
        if (rescued.quarantined or rescued.dead) and here(points.RESCUED):
            points.die()
        return rescued

    transitions.rescue = armed  # type: ignore[assignment]
    with _connect(site, "reconciler") as conn:
        Reconciler(settings, threading.Event()).run(conn)


def dispatch(site: Site, plan: Plan) -> None:
    """Dispatch until killed."""
    set_clock(plan.skew_s)
    settings = Settings(
        database_url=site.control_url,
        broker_url=site.dispatcher_url,
        lease_s=LEASE_S,
        heartbeat_s=HEARTBEAT_S,
    )
    here = points.Counter(plan.point, plan.nth, History(site.history))
    publish = Dispatcher._publish

    def armed(self: Dispatcher, privacy: str, lane: str, kind: str, chosen: list[UUID]) -> None:
        if chosen and here(points.STAMPED):
            points.die()
        publish(self, privacy, lane, kind, chosen)
        if chosen and here(points.PUBLISHED):
            points.die()

    Dispatcher._publish = armed  # type: ignore[method-assign]
    dispatcher = Dispatcher(settings, threading.Event())
    with _connect(site, "dispatcher") as conn:
        dispatcher.run(conn)


def _connect(site: Site, name: str) -> psycopg.Connection[Any]:
    return psycopg.connect(
        site.control_url, autocommit=True, **db.connection_options(name, LEASE_S)
    )
