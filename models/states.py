"""The states of a job and the moves between them. The drawing is docs/state_machine.md."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    """On its parent."""
    QUEUED = "queued"
    """Runnable once run_at has passed. Having a broker message is not a state."""
    RUNNING = "running"
    """Under a lease."""
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    """Out of attempts, or failed in a way that no further attempt mends."""
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    """Its deadline passed first."""
    SUPERSEDED = "superseded"
    """Its documents moved on while it ran: nothing of it was written."""


TERMINAL: frozenset[State] = frozenset(
    {State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED, State.SUPERSEDED}
)

TRANSITIONS: frozenset[tuple[State, State]] = frozenset(
    {
        (State.WAITING, State.QUEUED),
        (State.WAITING, State.CANCELLED),
        (State.WAITING, State.EXPIRED),
        (State.WAITING, State.DEAD),
        (State.QUEUED, State.RUNNING),
        (State.QUEUED, State.CANCELLED),
        (State.QUEUED, State.EXPIRED),
        (State.RUNNING, State.QUEUED),
        (State.RUNNING, State.SUCCEEDED),
        (State.RUNNING, State.DEAD),
        (State.RUNNING, State.CANCELLED),
        (State.RUNNING, State.EXPIRED),
        (State.RUNNING, State.SUPERSEDED),
    }
)
"""Every move there is. A database trigger refuses all others."""
