"""Celery's consumer, with patience for Flower."""

from __future__ import annotations

from typing import Any, Final

from celery.worker.consumer import Consumer

LINGER_S: Final = 0.1
"""How long a task event waits for others to share its message. Celery sends one message an event as
soon as it can, which is while the job runs, in the same process: as much work as running it."""


class PatientConsumer(Consumer):  # type: ignore[misc] # Celery ships no types
    """Sends task events a moment later, together. They carry the time at which they happened."""

    _sending = False

    def on_send_event_buffered(self) -> None:
        """Called from any thread for every event; see to it that it will be sent."""
        if self.hub and not self._sending:
            self._sending = True
            # Only the loop's own thread may set its timers.
            self.hub.call_soon(self._send_later)

    def _send_later(self) -> None:
        self.hub.call_later(LINGER_S, self._send)

    def _send(self, *_: Any) -> None:
        self._sending = False
        self._flush_events()
