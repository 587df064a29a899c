"""A stack's directory for a test, gone at its end with all that the stack keeps elsewhere."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.stack.server_dir import remove


@contextmanager
def temporary_home(prefix: str = "vestry-test-") -> Iterator[Path]:
    """A new directory until the end of the block; the stack in it must have ended by then."""
    home = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield home
    finally:
        remove(home)
