"""The disk laboratory: Postgres on a small tmpfs that is filled up.

Only root may mount one; otherwise the laboratory's report has a note and nothing is run.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.faults.servers import ServerFaults
from workers.stack.process import server_account

SIZE_MIB: Final = 400
BALLAST: Final = "ballast"
CHUNK: Final = 1024 * 1024
FULL_S: Final = (1.0, 3.0)
"""How long the disk stays full."""


@contextmanager
def small_disk(home: Path) -> Iterator[bool]:
    """Mount a small file system for the stack's Postgres; False if that is not possible."""
    directory = home / "postgres"
    directory.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(directory)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False)
    except OSError:
        yield False
        return
    if mounted.returncode != 0:
        yield False
        return
    try:
        server_account(directory / "data").own(directory)
        yield True
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], capture_output=True, check=False)


class DiskFaults(ServerFaults):
    """Faults of the servers, and a full disk."""

    def faults(self) -> dict[str, Any]:
        """Name to a function that begins the fault."""
        return super().faults() | {"the disk is full": self._fill}

    def _fill(self) -> Any:
        ballast = self._stack.home / "postgres" / BALLAST
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"\0" * CHUNK):
                pass

        def end() -> None:
            ballast.unlink()
            # Postgres ends itself if it cannot write its log; it is restarted, as systemd would.
            self._stack.ensure_postgres()

        return self._rng.uniform(*FULL_S), end
