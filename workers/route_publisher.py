"""Keeps the published routes: which pool's lane each sort of request goes to, as things stand.

Producers' enqueue reads them, so that a job starts out in the right lane; a worker's Router corrects
what has changed since. When a route changes, jobs in line are moved along.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import product
from typing import Any, Final

import psycopg

from inference.catalogue.schema import Catalogue
from inference.routing.backend_guard import BackendGuard
from inference.routing.policy import Budget, Health, RoutingPolicy, RoutingRequest
from models import backend_health
from models.backend_health import Route
from vestry.lanes import KINDS, LANES, Latency, Pool, Privacy
from workers.enabled_backends import breaker_settings, enabled_catalogue
from workers.settings import Settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

REFRESH_EVERY_S: Final = 1.0
"""How soon a breaker that opens or closes, or money that is spent, changes the routes."""
MOVE_TIME_BUDGET_S: Final = 0.1
"""Time for moving jobs in line, each time the dispatcher looks."""
ONE_POOL: Final = frozenset(kind for kind, pool in KINDS.items() if pool is Pool.CPU)
QUALITIES: Final = ("adequate", "best")


class RoutePublisher:
    """Publishes routes on a dispatcher's connection.

    Args:
        settings: which backends are enabled.
    """

    def __init__(self, settings: Settings) -> None:
        self._catalogue = enabled_catalogue(settings)
        self._policy = RoutingPolicy(self._catalogue)
        self._settings = settings
        self._last: tuple[Health, bool] | None = None
        self._next = 0.0
        self._to_move: dict[tuple[str, str], backend_health.MovePosition] = {}

    def refresh(self, conn: Connection) -> None:
        """Publish anew if anything changed that decides a route, looking once a LOOK_EVERY_S.

        Args:
            conn: the dispatcher's, in autocommit.
        """
        self._move(conn)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_EVERY_S
        gate = BackendGuard(
            lambda: nullcontext(conn),
            self._catalogue,
            breaker_settings(self._settings),
            self._settings.cloud_budget_usd,
        )
        health, budget = gate.unhealthy(), gate.budget()
        now = (health, budget.used_up)
        if now == self._last:
            return
        with conn.transaction():
            changed = backend_health.publish(conn, list(routes(self._policy, health, budget)))
        self._last = now
        for kind, privacy, latency in _by_line(changed):
            for lane in LANES.values():
                if (lane.privacy, lane.latency) == (privacy, latency):
                    self._to_move[lane.name, kind] = backend_health.QUEUE_START

    def _move(self, conn: Connection) -> None:
        """A little of what stands in the wrong line: whatever else a dispatcher does must not wait."""
        until = time.monotonic() + MOVE_TIME_BUDGET_S
        while self._to_move and time.monotonic() < until:
            (lane, kind), after = next(iter(self._to_move.items()))
            moved, rest = backend_health.move_jobs(conn, lane, kind, after)
            if rest is None:
                del self._to_move[lane, kind]
            else:
                self._to_move[lane, kind] = rest
            if moved:
                log.info("%d jobs of %s went where the routes lead now", moved, lane)

    def forget(self) -> None:
        """Publish again with the next look: the connection is a new one."""
        self._last = None
        self._next = 0.0


def routes(policy: RoutingPolicy, health: Health, budget: Budget) -> Iterator[Route]:
    """Every route as things stand: to what may be called now, else to where it is waited for."""
    catalogue = policy.catalogue
    for kind, privacy, latency, quality in product(KINDS, Privacy, Latency, QUALITIES):
        for task, tier in product(_tasks(catalogue, kind), _tiers(catalogue)):
            wish = RoutingRequest(
                kind, task or None, privacy.value, latency.value, tier or None, quality
            )
            found = policy.candidates(wish, health, budget)
            candidate = found.first or found.intended
            if candidate is not None:
                yield Route(
                    kind, task, privacy.value, latency.value, quality, tier,
                    candidate.pool.value, candidate.model.name,
                )  # fmt: skip


def _tasks(catalogue: Catalogue, kind: str) -> list[str]:
    return ["", *(entry.name for entry in catalogue.tasks if kind in entry.kinds)]


def _tiers(catalogue: Catalogue) -> list[str]:
    return ["", *sorted({tier for rule in catalogue.policy for tier in rule.when.tier})]


def _by_line(changed: list[Route]) -> set[tuple[str, str, str]]:
    """Lines in which jobs may stand that now belong elsewhere: private ones have one pool a kind."""
    return {
        (route.kind, route.privacy, route.latency)
        for route in changed
        if route.privacy == Privacy.SHAREABLE.value and route.kind not in ONE_POOL
    }
