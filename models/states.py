"""Transitions between the states of a job; docs/state_machine.md has the diagram."""

from __future__ import annotations

from typing import Final

from vestry.jobs.results import TERMINAL, State

__all__ = ["TERMINAL", "TRANSITIONS", "State"]

TRANSITIONS: Final[frozenset[tuple[State, State]]] = frozenset(
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
"""All allowed transitions; a database trigger refuses every other."""
