"""Sources of the key ring (a file, a command, an inherited descriptor), and rereading them."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path
from uuid import uuid4

import pytest

from vestry import KeyRing
from vestry.crypto import keyring_file
from vestry.crypto.envelope import new_dek
from vestry.crypto.keyring import (
    COMMAND,
    DESCRIPTOR,
    FILE,
    KeyCommand,
    KeyDescriptor,
    key_source_from_environment,
)
from vestry.crypto.keyring_file import KeyFile, RingText, dump
from vestry.errors import KeyRingError, UnknownKey
from workers.stack.keyring_handoff import KeyringPipe

OLD = RingText({"old": b"o" * 32}, "old")
BOTH = RingText({**OLD.keys, "new": b"n" * 32}, "new")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ring.json"
    keyring_file.create(path, OLD)
    return path


def renew(path: Path, ring: RingText = BOTH) -> None:
    with keyring_file.changing(path) as change:
        change.replace(ring)


def printing(path: Path) -> str:
    return shlex.join([sys.executable, "-c", f"print(open({str(path)!r}).read())"])


def test_each_source_gives_the_same_ring(path: Path) -> None:
    piped, write = os.pipe()
    os.write(write, dump(OLD).encode())
    os.close(write)
    held = os.open(path, os.O_RDONLY)
    for name, value in (
        (FILE, str(path)), (COMMAND, printing(path)), (DESCRIPTOR, str(held)),
        (DESCRIPTOR, str(piped)),
    ):  # fmt: skip
        source = key_source_from_environment({name: value})
        assert source is not None
        assert source.read() == OLD
        assert source.read() == OLD
    assert key_source_from_environment({}) is None
    os.close(held)
    os.close(piped)


def test_two_configured_sources_are_refused(path: Path) -> None:
    with pytest.raises(KeyRingError, match="both set"):
        key_source_from_environment({FILE: str(path), COMMAND: "cat"})


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "not a command line"), ("'", "not a command line"), ("/no/such/program", "cannot be run"),
        ("false", "exit code 1"), ("echo SECRET", "printed no key ring"),
    ],
)  # fmt: skip
def test_failed_command_is_named_and_not_quoted(command: str, message: str) -> None:
    with pytest.raises(KeyRingError, match=message) as caught:
        KeyCommand(command).read()
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("value", ["", "x", "-1", "999999", "99999999999999999999"])
def test_invalid_descriptor_is_refused(value: str) -> None:
    if not value:
        assert key_source_from_environment({DESCRIPTOR: value}) is None
        return
    with pytest.raises(KeyRingError, match=DESCRIPTOR):
        key_source_from_environment({DESCRIPTOR: value})


def test_descriptor_is_not_inherited_by_children(path: Path) -> None:
    held = os.open(path, os.O_RDONLY)
    os.set_inheritable(held, True)
    KeyDescriptor(held)
    assert not os.get_inheritable(held)
    os.close(held)


def test_ring_reads_a_replaced_file(path: Path) -> None:
    ring, owner, key_id, dek = KeyRing.load(path), "ann", uuid4(), new_dek()
    assert ring.current == "old"
    renew(path)
    # Wrapping checks whether the file was replaced, unwrapping only when a key is missing.
    assert ring.wrap(owner, key_id, dek)[1] == "new"
    late = KeyRing.load(path)
    renew(path, RingText({**BOTH.keys, "newest": b"m" * 32}, "newest"))
    wrapped, kek = KeyRing.load(path).wrap(owner, key_id, dek)
    assert kek == "newest"
    assert late.unwrap(owner, key_id, wrapped, kek).key_id == key_id


def test_missing_key_does_not_reread_the_source_each_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, reads = KeyFile(path), []
    ring = KeyRing.read(source)
    monkeypatch.setattr(source, "read_with", lambda kek: reads.append(kek) or source.read())
    for _ in range(3):
        with pytest.raises(UnknownKey):
            ring.unwrap("ann", uuid4(), bytes(60), "elsewhere")
    assert reads == ["elsewhere"]


def test_process_inherits_the_ring_and_reads_the_next_one(path: Path, tmp_path: Path) -> None:
    pipe = KeyringPipe(path, tmp_path)
    descriptor = pipe.descriptor()
    script = """
import sys
from vestry.crypto import keyring
from vestry.crypto.keyring import key_source_from_environment
keyring.DESCRIPTOR_READ_TIMEOUT_S = 60  # a busy machine may write the next ring late
source = key_source_from_environment()
print(source.read().current, flush=True)
print(source.read_with("new").current, flush=True)
try:
    import os
    os.write(int(os.environ["VESTRY_KEYRING_FD"]), b"x")
except OSError:
    print("read only", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], env={DESCRIPTOR: str(descriptor)},
        cwd=Path(__file__).resolve().parents[2], pass_fds=(descriptor,), stdout=subprocess.PIPE,
        text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == "old\n"
        renew(path)
        pipe.refresh()
        assert child.stdout.readline() == "new\n"
        assert child.stdout.readline() == "read only\n"
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_ring_file_is_replaced_atomically(path: Path) -> None:
    stop, rings = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            rings.append(KeyFile(path).read())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(100):
        renew(path, BOTH if number % 2 else OLD)
    stop.set()
    reader.join()
    assert rings
    assert all(ring in (OLD, BOTH) for ring in rings)
    assert path.stat().st_mode & 0o777 == 0o600


def test_concurrent_changes_of_a_ring_are_serialised(path: Path) -> None:
    def add() -> None:
        with keyring_file.changing(path) as change:
            time.sleep(0.02)
            name = f"kek-{len(change.ring.keys)}"
            change.replace(RingText({**change.ring.keys, name: b"k" * 32}, change.ring.current))

    threads = [threading.Thread(target=add) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(path.read_text())["keys"]) == 6
