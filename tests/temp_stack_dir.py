"""A temporary home for a stack."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.stack.server_dir import remove


@contextmanager
def temporary_home(prefix: str = "vestry-test-") -> Iterator[Path]:
    """A new directory. It is removed at the end with its servers' data: the stack must have stopped."""
    home = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        yield home
    finally:
        remove(home)
