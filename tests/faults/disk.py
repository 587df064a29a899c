"""The laboratory of the full disk: Postgres on a small file system of memory, which is filled up.

Only root may mount one; without that the laboratory says so and does nothing.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.faults.servers import Mishaps
from workers.stack.process import server_account

SIZE_MIB: Final = 400
BALLAST: Final = "ballast"
CHUNK: Final = 1024 * 1024
FULL_S: Final = (1.0, 3.0)
"""How long the disk stays full."""


@contextmanager
def small_disk(home: Path) -> Iterator[bool]:
    """A small file system where the stack's Postgres will be; False where none can be mounted."""
    place = home / "postgres"
    place.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(place)]
    try:
        done = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        yield False
        return
    if done.returncode != 0:
        yield False
        return
    try:
        server_account(place / "data").own(place)
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(place)], capture_output=True, check=False)


class Filling(Mishaps):
    """Mishaps, with one more: the disk is full."""

    def happenings(self) -> dict[str, Any]:
        """By name, what begins each."""
        return super().happenings() | {"the disk is full": self._fill}

    def _fill(self) -> Any:
        ballast = self._stack.home / "postgres" / BALLAST
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * CHUNK):
                pass

        def over() -> None:
            ballast.unlink()
            # Postgres ends itself where it cannot write its log; systemd, say, starts it again.
            self._stack.revive_postgres()

        return self._rng.uniform(*FULL_S), over
