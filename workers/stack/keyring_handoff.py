"""Hands the key ring to the stack's private workers by an inherited descriptor.

They get it neither by an argument nor by a variable, and need no right to read its file. What they
inherit is open for reading only; each further line in it is a newer ring, so that a rotation reaches
workers that run (see `vestry.crypto.keyring.KeyDescriptor`).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from vestry.crypto.keyring import COMMAND, KeyCommand, KeySource
from vestry.crypto.keyring_file import KeyFile, dump
from vestry.errors import KeyRingError


class KeyringPipe:
    """The supervisor's end.

    Args:
        keyring: the ring's file, unless VESTRY_KEYRING_COMMAND names a command.
        directory: private; where a nameless file is made on systems without one in memory.
    """

    def __init__(self, keyring: Path, directory: Path) -> None:
        command = os.environ.get(COMMAND)
        self._source: KeySource = KeyCommand(command) if command else KeyFile(keyring)
        self._directory = directory
        self._writing: int | None = None
        self._reading: int | None = None

    @property
    def in_file(self) -> bool:
        """Whether clients on this machine find the ring in its file; else they name a command too."""
        return isinstance(self._source, KeyFile)

    def descriptor(self) -> int:
        """What a child is to inherit, with the ring as it is now in it.

        Raises:
            OSError: the ring cannot be read; the message says why.
        """
        if self._reading is None:
            self._writing, self._reading = _nameless(self._directory)
            self._hand()
        else:
            self.refresh()
        return self._reading

    def refresh(self) -> None:
        """Hand on a ring that has changed. Cheap: called many times a second."""
        if self._writing is not None and self._source.changed():
            self._hand()

    def _hand(self) -> None:
        assert self._writing is not None  # noqa: S101 - the callers looked
        try:
            line = dump(self._source.read())
        except KeyRingError as error:
            raise OSError(str(error)) from None
        os.write(self._writing, line.encode())


def _nameless(directory: Path) -> tuple[int, int]:
    """A file without a name, open for writing and, apart from that, for reading."""
    if hasattr(os, "memfd_create"):
        writing = os.memfd_create("vestry-keyring", os.MFD_CLOEXEC)
        os.fchmod(writing, 0o600)
        return writing, os.open(f"/proc/self/fd/{writing}", os.O_RDONLY)
    writing, name = tempfile.mkstemp(dir=directory)
    try:
        return writing, os.open(name, os.O_RDONLY)
    finally:
        Path(name).unlink()
