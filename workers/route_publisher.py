"""Published routes: the pool to which each class of request goes, by the backends' health and budget.

Enqueue reads them, so that a job starts in the right lane; a worker's Router corrects what has changed
since. When a route changes, queued jobs are moved to the new lane.
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
from models.routes import QUEUE_START, MovePosition, Route, move_jobs, publish
from vestry.lanes import KINDS, LANES, Latency, Pool, Privacy
from workers.enabled_backends import breaker_settings, enabled_catalogue
from workers.settings import Settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)

REFRESH_EVERY_S: Final = 1.0
"""Longest delay until a circuit breaker's change or a spent budget changes the routes."""
MOVE_TIME_BUDGET_S: Final = 0.1
"""Time for moving queued jobs, per tick of the dispatcher."""
SINGLE_POOL_KINDS: Final = frozenset(kind for kind, pool in KINDS.items() if pool is Pool.CPU)
"""Kinds that a single pool serves."""
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
        self._to_move: dict[tuple[str, str], MovePosition] = {}

    def refresh(self, conn: Connection) -> None:
        """Publish the routes if health or budget has changed, checking every REFRESH_EVERY_S.

        Args:
            conn: the dispatcher's, in autocommit.
        """
        self._move(conn)
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + REFRESH_EVERY_S
        guard = BackendGuard(
            lambda: nullcontext(conn),
            self._catalogue,
            breaker_settings(self._settings),
            self._settings.cloud_budget_usd,
        )
        health, budget = guard.unhealthy(), guard.budget()
        current = (health, budget.used_up)
        if current == self._last:
            return
        with conn.transaction():
            changed = publish(conn, list(routes(self._policy, health, budget)))
        self._last = current
        for kind, privacy, latency in _movable(changed):
            for lane in LANES.values():
                if (lane.privacy, lane.latency) == (privacy, latency):
                    self._to_move[lane.name, kind] = QUEUE_START

    def _move(self, conn: Connection) -> None:
        """Move jobs out of lanes that their route no longer names, for at most MOVE_TIME_BUDGET_S."""
        until = time.monotonic() + MOVE_TIME_BUDGET_S
        while self._to_move and time.monotonic() < until:
            (lane, kind), position = next(iter(self._to_move.items()))
            moved, next_position = move_jobs(conn, lane, kind, position)
            if next_position is None:
                del self._to_move[lane, kind]
            else:
                self._to_move[lane, kind] = next_position
            if moved:
                log.info("routes changed: %d jobs moved from %s", moved, lane)

    def invalidate(self) -> None:
        """Make the next refresh publish in any case: the connection is a new one."""
        self._last = None
        self._next = 0.0


def routes(policy: RoutingPolicy, health: Health, budget: Budget) -> Iterator[Route]:
    """Every route: to the first model that may be called now, else to the intended one."""
    catalogue = policy.catalogue
    for kind, privacy, latency, quality in product(KINDS, Privacy, Latency, QUALITIES):
        for task, tier in product(_tasks(catalogue, kind), _tiers(catalogue)):
            request = RoutingRequest(
                kind, task or None, privacy.value, latency.value, tier or None, quality
            )
            candidates = policy.candidates(request, health, budget)
            candidate = candidates.first or candidates.intended
            if candidate is not None:
                yield Route(
                    kind, task, privacy.value, latency.value, quality, tier,
                    candidate.pool.value, candidate.model.name,
                )  # fmt: skip


def _tasks(catalogue: Catalogue, kind: str) -> list[str]:
    return ["", *(entry.name for entry in catalogue.tasks if kind in entry.kinds)]


def _tiers(catalogue: Catalogue) -> list[str]:
    return ["", *sorted({tier for rule in catalogue.policy for tier in rule.when.tier})]


def _movable(changed: list[Route]) -> set[tuple[str, str, str]]:
    """(kind, privacy, latency) whose queued jobs may change pools: private kinds have one pool each."""
    return {
        (route.kind, route.privacy, route.latency)
        for route in changed
        if route.privacy == Privacy.SHAREABLE.value and route.kind not in SINGLE_POOL_KINDS
    }
