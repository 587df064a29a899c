"""Stacks of `vestry up` that test modules declare and share.

A module says which stack its tests need:

    pytestmark = pytest.mark.stack(ECHO)

`tests/xdist_scheduler.py` runs the modules of equal declarations one after the other in one process.
The stack is started by the first of them and stopped after the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import pytest

from tests import faulty_echo, quick_stack
from tests.cluster_template import migrated_home
from tests.run_dir import timed_start
from workers.stack import commands
from workers.stack.background import BackgroundStack, start_background

ECHO_SETTINGS: Final = {
    "VESTRY_EMBEDDING_BACKEND": faulty_echo.RUNTIME,
    "VESTRY_LEASE_S": "3",
    "VESTRY_HEARTBEAT_S": "0.5",
    "VESTRY_BACKOFF_CAP_S": "0.2",
}
"""The echo backend with faults on request, and leases short enough to wait for."""
INFERENCE: Final = (
    "dispatcher", "reconciler", "private-interactive-gpu", "private-bulk-gpu",
    "shareable-interactive-gpu", "shareable-bulk-gpu",
)  # fmt: skip
"""All processes but the OCR workers, each of which takes a second to start."""
FLOWERS: Final = ("flower-private", "flower-shareable")


class SharedStack(Protocol):
    """A declared stack; modules with equal declarations share one."""

    @property
    def name(self) -> str:
        """Name of the group of modules; different declarations have different names."""
        ...

    def start(self) -> AbstractContextManager[Any]:
        """Start the stack, and stop it at the end of the block."""
        ...


@dataclass(frozen=True, slots=True)
class StackSpec:
    """A stack of `vestry up` in a home of its own.

    Attributes:
        settings: `VESTRY_*` settings of every process, as pairs.
        only: the processes besides the servers.
        flower: whether Flower runs, too.
        durable: whether Postgres waits for the disk, as tests that kill it need.
    """

    name: str
    settings: tuple[tuple[str, str], ...]
    only: tuple[str, ...] = INFERENCE
    flower: bool = False
    durable: bool = False

    @contextmanager
    def start(self) -> Iterator[BackgroundStack]:
        """Start the stack, and wait until every process is ready."""
        with (
            migrated_home() as home,
            start_stack(
                home, dict(self.settings), self.only, flower=self.flower, durable=self.durable
            ) as running,
        ):
            yield running


ECHO: Final = StackSpec("echo", tuple(ECHO_SETTINGS.items()), durable=True)
ECHO_WITH_FLOWER: Final = StackSpec("echo-flower", ECHO.settings, flower=True)


def start_stack(
    home: Path,
    settings: Mapping[str, str],
    only: Sequence[str] = (),
    *,
    flower: bool = False,
    durable: bool = False,
) -> BackgroundStack:
    """Start a stack.

    Args:
        home: an empty or a migrated home.
        settings: `VESTRY_*` settings of every process.
        only: the processes besides the servers and Flower; empty means all.
        flower: whether Flower runs, too.
        durable: whether Postgres waits for the disk, as tests that kill it need.
    """
    module = commands.__name__ if durable else quick_stack.__name__
    processes = (*only, *FLOWERS) if only and flower else only
    with timed_start(f"`vestry up` with {len(processes) or 'all'} processes"):
        return start_background(home, settings, flower=flower, only=processes, module=module)


class StackPool:
    """The declared stack that runs now, if any."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._declared: SharedStack | None = None
        self._running: Any = None

    def get(self, declared: SharedStack) -> Any:
        """The running stack of a declaration; a stack of another declaration is stopped first."""
        if self._declared != declared:
            self.close()
            self._running = self._open.enter_context(declared.start())
            self._declared = declared
        return self._running

    def close(self) -> None:
        """Stop the running stack, if any."""
        self._declared = self._running = None
        self._open.close()


POOL: Final = StackPool()
"""The pool of this process."""


def declared_stack(item: pytest.Item) -> SharedStack | None:
    """The stack that a test's module declares."""
    marker = item.get_closest_marker("stack")
    return None if marker is None else marker.args[0]
