"""The model of `test_model`: expected job rows, and leases as their workers see them."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import psycopg

from models.claims import Lease
from vestry import Vestry
from workers.stack.dev_stack import DevStack


@dataclass(slots=True)
class ExpectedJob:
    """The expected row of a job."""

    parent: UUID | None
    flow: bool
    state: str = "queued"
    has_start_tag: bool = True
    attempt: int = 0
    crashes: int = 0
    quarantined: bool = False
    lease: UUID | None = None
    max_attempts: int = 5

    def row(self) -> tuple[Any, ...]:
        return (
            self.state, self.has_start_tag, self.attempt, self.crashes, self.quarantined, self.lease,
        )  # fmt: skip


@dataclass(slots=True)
class HeldLease:
    """A lease as its worker sees it, whether or not it still holds the jobs."""

    lease: Lease
    expired: bool = False
    """Expired and not yet rescued."""
    overran: bool = False
    crash_counted: bool = False
    """A crash was counted for its one job; it is reverted if the worker finishes late."""
    jobs: list[UUID] = field(default_factory=list)


class RoleConnections:
    """Connections of each role, shared by all sequences."""

    def __init__(self, stack: DevStack, opened: ExitStack) -> None:
        def connect(url: str, *, autocommit: bool = True) -> psycopg.Connection[Any]:
            return opened.enter_context(psycopg.connect(url, autocommit=autocommit))

        url = stack.database_url("vestry_producer")
        self.producer = connect(url)
        self.vestry = opened.enter_context(Vestry(url, stack.keyring))
        self.worker = connect(stack.database_url("vestry_shareable"), autocommit=False)
        self.control = connect(stack.database_url("vestry_control"))
        self.admin = connect(stack.superuser_url)
