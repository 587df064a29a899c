"""Hears that an interactive job is done, on one connection kept for a whole client.

A notification is a hint that saves up to a second: who waits also reads every second, so a lost
connection, or a pooler that cannot LISTEN, costs latency and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from typing import Final
from uuid import UUID

import psycopg

READ_AGAIN_S: Final = 1.0
"""How often who waits reads the job's state, notified or not."""
_LISTEN: Final = "LISTEN vestry_done"
_SHUTDOWN_POLL_S: Final = 0.5
"""How long closing may take, and the pause before connecting again."""
_START_S: Final = 2.0
"""How long a first waiter waits for the ear to open before it goes on by reading alone."""


class CompletionListener:
    """A thread that listens and wakes who waits for a job. Starts when first needed."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._open = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, job: UUID) -> Iterator[threading.Event]:
        """An event set when the job is done. Read its state after entering, not before."""
        event, name = threading.Event(), str(job)
        with self._lock:
            self._waiting[name].add(event)
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(target=self._run, name="vestry-ear", daemon=True)
                self._thread.start()
        try:
            self._open.wait(_START_S)
            yield event
        finally:
            with self._lock:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * _SHUTDOWN_POLL_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with psycopg.connect(self._conninfo, autocommit=True) as conn:
                    conn.execute(_LISTEN)
                    self._open.set()
                    self._hear(conn)
            except psycopg.Error:
                # Nobody is told: waiters read by themselves, and say so if they cannot.
                self._open.clear()
                self._closing.wait(_SHUTDOWN_POLL_S)

    def _hear(self, conn: psycopg.Connection[tuple[object, ...]]) -> None:
        while not self._closing.is_set():
            for heard in conn.notifies(timeout=_SHUTDOWN_POLL_S):
                with self._lock:
                    events = tuple(self._waiting.get(heard.payload, ()))
                for event in events:
                    event.set()


class AsyncCompletionListener:
    """`Listener` as a task of the running event loop."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._open = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, job: UUID) -> AsyncIterator[asyncio.Event]:
        """An event set when the job is done. Read its state after entering, not before."""
        event, name = asyncio.Event(), str(job)
        self._waiting[name].add(event)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="vestry-ear")
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._open.wait(), _START_S)
            yield event
        finally:
            self._waiting[name].discard(event)
            if not self._waiting[name]:
                del self._waiting[name]

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    async def _run(self) -> None:
        while True:
            try:
                async with await psycopg.AsyncConnection.connect(
                    self._conninfo, autocommit=True
                ) as conn:
                    await conn.execute(_LISTEN)
                    self._open.set()
                    async for heard in conn.notifies():
                        for event in tuple(self._waiting.get(heard.payload, ())):
                            event.set()
            except psycopg.Error:
                self._open.clear()
                await asyncio.sleep(_SHUTDOWN_POLL_S)
