"""A TCP proxy on loopback that can cut connections or hold them: half-open connections.

To both ends a held connection is established but idle; the kernel acknowledges their keepalives, as a
load balancer does for a peer that is down.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Self

TICK_S: Final = 0.02
CHUNK: Final = 65_536


class Mode(StrEnum):
    """How the proxy treats connections and data."""

    OPEN = "open"
    CUT = "cut"
    HELD = "held"


@dataclass(slots=True, eq=False)
class _End:
    """One socket of a pair, and the bytes to be written to it."""

    socket: socket.socket
    other: _End | None = None
    unsent: bytearray = field(default_factory=bytearray)


class Proxy:
    """Forwards connections to a port of this machine.

    Args:
        target: the port.
        host: address on which it listens.
    """

    def __init__(self, target: int, host: str = "127.0.0.1") -> None:
        self._target = target
        self._listener = socket.create_server((host, 0), backlog=128)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._mode = Mode.OPEN
        self._ends: set[_End] = set()
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._ends) // 2

    @property
    def mode(self) -> Mode:
        """The current mode."""
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        with self._lock:
            self._mode = mode
            if mode is Mode.CUT:
                for end in list(self._ends):
                    self._drop(end)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()
        for end in list(self._ends):
            self._drop(end)
        self._selector.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._accept()
            if self._mode is Mode.HELD or not self._ends:
                self._stop.wait(TICK_S)
                continue
            for key, _ in self._selector.select(TICK_S):
                with self._lock:
                    if key.data in self._ends and self._mode is Mode.OPEN:
                        self._forward(key.data)

    def _accept(self) -> None:
        with self._lock, contextlib.suppress(BlockingIOError):
            while True:
                near, _ = self._listener.accept()
                if self._mode is Mode.CUT:
                    near.close()
                    continue
                try:
                    far = socket.create_connection(("127.0.0.1", self._target), timeout=1)
                except OSError:
                    near.close()
                    continue
                ends = _End(near), _End(far)
                ends[0].other, ends[1].other = ends[1], ends[0]
                for end in ends:
                    end.socket.setblocking(False)
                    end.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._ends.add(end)
                    self._selector.register(end.socket, selectors.EVENT_READ, end)

    def _forward(self, end: _End) -> None:
        """Read from one end and write to the other; then write the unsent bytes of this end."""
        other = end.other
        assert other is not None
        try:
            if not other.unsent:
                data = end.socket.recv(CHUNK)
                if not data:
                    self._drop(end)
                    return
                other.unsent += data
        except BlockingIOError:
            pass
        except OSError:
            self._drop(end)
            return
        self._flush(other)
        self._flush(end)

    def _flush(self, end: _End) -> None:
        try:
            if end.unsent:
                del end.unsent[: end.socket.send(end.unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(end)
            return
        if end in self._ends:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if end.unsent else 0)
            self._selector.modify(end.socket, events, end)

    def _drop(self, end: _End) -> None:
        for each in (end, end.other):
            if each is not None and each in self._ends:
                self._ends.discard(each)
                self._selector.unregister(each.socket)
                each.socket.close()
