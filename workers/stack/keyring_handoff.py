"""Hand-over of the key ring to the stack's private workers, by an inherited descriptor.

The key ring is in no argument and no variable, and workers need no permission to read its file. The
descriptor is read-only; each further line is a newer ring, so that a rotation reaches running workers
(see `vestry.crypto.keyring.KeyDescriptor`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vestry.crypto.keyring import COMMAND, KeyCommand, KeySource
from vestry.crypto.keyring_file import KeyFile, dump
from vestry.errors import KeyRingError


class KeyringPipe:
    """The supervisor's end of the hand-over.

    Args:
        keyring: the ring's file, unless VESTRY_KEYRING_COMMAND is set.
        directory: private; for an unlinked file on systems without memfd_create.
    """

    def __init__(self, keyring: Path, directory: Path) -> None:
        command = os.environ.get(COMMAND)
        self._source: KeySource = KeyCommand(command) if command else KeyFile(keyring)
        self._directory = directory
        self._write_fd: int | None = None
        self._read_fd: int | None = None

    @property
    def in_file(self) -> bool:
        """Whether the ring has a file that clients on this machine can use."""
        return isinstance(self._source, KeyFile)

    def descriptor(self) -> int:
        """The descriptor that a process inherits, with the present ring written to it.

        Raises:
            OSError: the ring cannot be read; the message says why.
        """
        if self._read_fd is None:
            self._write_fd, self._read_fd = _unnamed_file(self._directory)
            self._write()
        else:
            self.refresh()
        return self._read_fd

    def refresh(self) -> None:
        """Write the ring if it has changed. Cheap: called many times a second."""
        if self._write_fd is not None and self._source.changed():
            self._write()

    def _write(self) -> None:
        assert self._write_fd is not None  # noqa: S101 - the callers have checked
        try:
            line = dump(self._source.read())
        except KeyRingError as error:
            raise OSError(str(error)) from None
        os.write(self._write_fd, line.encode())


def _unnamed_file(directory: Path) -> tuple[int, int]:
    """Two descriptors of a file without a name: one to write, one to read."""
    if hasattr(os, "memfd_create"):
        write_fd = os.memfd_create("vestry-keyring", os.MFD_CLOEXEC)
        os.fchmod(write_fd, 0o600)
        return write_fd, os.open(f"/proc/self/fd/{write_fd}", os.O_RDONLY)
    write_fd, name = tempfile.mkstemp(dir=directory)
    try:
        return write_fd, os.open(name, os.O_RDONLY)
    finally:
        Path(name).unlink()
