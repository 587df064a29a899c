"""LISTEN for the end of interactive jobs, on one connection per client.

A notification is a hint that saves up to a second: a waiting caller also reads the job's state every
second, so a lost connection, or a pooler without LISTEN, costs latency and nothing else.

One listener is a thread with a lock, the other a task that is cancelled: neither is generated from the
other.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Final
from uuid import UUID

import psycopg

POLL_S: Final = 1.0
"""How often a waiting caller reads the job's state, notified or not."""
_LISTEN: Final = "LISTEN vestry_done"
_RETRY_S: Final = 0.5
"""Delay before reconnecting, and half of the longest time that closing takes."""
_START_TIMEOUT_S: Final = 2.0
"""Longest wait of the first caller for the listener to connect; after it, the caller polls."""

Wait = Callable[[float], None]
"""Wait for the notification, at most so many seconds."""
AsyncWait = Callable[[float], Awaitable[None]]
"""`Wait` for asyncio."""


class CompletionListener:
    """Listener in a daemon thread, started by the first `watch`."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._lock = threading.Lock()
        self._waiting: defaultdict[str, set[threading.Event]] = defaultdict(set)
        self._connected = threading.Event()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def watch(self, job: UUID) -> Iterator[Wait]:
        """A way to wait for the end of a job. Read its state after entering, not before."""
        event, name = threading.Event(), str(job)
        with self._lock:
            self._waiting[name].add(event)
            if self._thread is None and not self._closing.is_set():
                self._thread = threading.Thread(
                    target=self._run, name="vestry-listener", daemon=True
                )
                self._thread.start()

        def wait(timeout_s: float) -> None:
            event.wait(timeout_s)
            event.clear()

        try:
            self._connected.wait(_START_TIMEOUT_S)
            yield wait
        finally:
            with self._lock:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * _RETRY_S)

    def _run(self) -> None:
        while not self._closing.is_set():
            try:
                with psycopg.connect(self._conninfo, autocommit=True) as conn:
                    conn.execute(_LISTEN)
                    self._connected.set()
                    self._listen(conn)
            except psycopg.Error:
                # Not reported: waiting callers poll, and raise if they cannot.
                self._connected.clear()
                self._closing.wait(_RETRY_S)

    def _listen(self, conn: psycopg.Connection[tuple[object, ...]]) -> None:
        while not self._closing.is_set():
            for notification in conn.notifies(timeout=_RETRY_S):
                with self._lock:
                    events = tuple(self._waiting.get(notification.payload, ()))
                for event in events:
                    event.set()


class AsyncCompletionListener:
    """Listener in a task of the running event loop, started by the first `watch`."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._connected = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def watch(self, job: UUID) -> AsyncIterator[AsyncWait]:
        """A way to wait for the end of a job. Read its state after entering, not before."""
        event, name = asyncio.Event(), str(job)
        self._waiting[name].add(event)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="vestry-listener")

        async def wait(timeout_s: float) -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), timeout_s)
            event.clear()

        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._connected.wait(), _START_TIMEOUT_S)
            yield wait
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
                    self._connected.set()
                    async for notification in conn.notifies():
                        for event in tuple(self._waiting.get(notification.payload, ())):
                            event.set()
            except psycopg.Error:
                self._connected.clear()
                await asyncio.sleep(_RETRY_S)
