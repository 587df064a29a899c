"""Sealing and the key ring: opening, refusal of changed content, reprs without key material."""

from __future__ import annotations

import json
import os
import pickle
import stat
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vestry.crypto.envelope import CHUNK, PAYLOAD, OwnerKey, associated_data, new_dek, plain_digest
from vestry.crypto.keyring import KeyRing
from vestry.db.operations import uuid7
from vestry.errors import KeyRingError, SealBroken, UnknownKey


def owner_key(owner: str = "alice") -> OwnerKey:
    return OwnerKey(uuid7(), owner, new_dek())


@given(st.binary(max_size=5000))
def test_sealed_content_opens(plaintext: bytes) -> None:
    key, row = owner_key(), uuid4()
    assert key.open(PAYLOAD, row, key.seal(PAYLOAD, row, plaintext)) == plaintext


def test_envelope_is_version_key_id_nonce_ciphertext_tag() -> None:
    key = owner_key()
    sealed = key.seal(PAYLOAD, uuid4(), b"secret words")
    assert sealed[:17] == b"\x01" + key.key_id.bytes
    assert len(sealed) == 1 + 16 + 12 + len(b"secret words") + 16
    assert b"secret" not in sealed


def test_same_text_seals_differently_each_time() -> None:
    key, row = owner_key(), uuid4()
    assert len({key.seal(PAYLOAD, row, b"again") for _ in range(100)}) == 100


@pytest.mark.parametrize("position", [0, 1, 16, 17, 28, 29, -1])
def test_any_changed_byte_breaks_the_seal(position: int) -> None:
    key, row = owner_key(), uuid4()
    sealed = bytearray(key.seal(PAYLOAD, row, b"x"))
    sealed[position] ^= 1
    with pytest.raises((SealBroken, UnknownKey)):
        key.open(PAYLOAD, row, bytes(sealed))


@pytest.mark.parametrize(
    "sealed", [b"", b"\x01", b"\x02" * 60, b"plain text, not an envelope at all" * 3]
)
def test_bytes_that_are_no_envelope_do_not_open(sealed: bytes) -> None:
    with pytest.raises(SealBroken):
        owner_key().open(PAYLOAD, uuid4(), sealed)


def test_sealed_bytes_do_not_open_elsewhere() -> None:
    key, row = owner_key(), uuid4()
    same_key_other_owner = OwnerKey(key.key_id, "bob", dek := new_dek())
    alice_with_it = OwnerKey(key.key_id, "alice", dek)
    sealed = key.seal(PAYLOAD, row, b"x")
    with pytest.raises(SealBroken):
        key.open(PAYLOAD, uuid4(), sealed)
    with pytest.raises(SealBroken):
        key.open(CHUNK, row, sealed)
    with pytest.raises(SealBroken):
        same_key_other_owner.open(PAYLOAD, row, alice_with_it.seal(PAYLOAD, row, b"x"))
    with pytest.raises(UnknownKey):
        owner_key().open(PAYLOAD, row, sealed)


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_associated_data_of_two_rows_never_collides(
    owner: str, field: str, owner2: str, field2: str
) -> None:
    row = uuid4()
    same = (owner, field) == (owner2, field2)
    assert (associated_data(row, owner, field) == associated_data(row, owner2, field2)) is same


def test_digests_are_keyed_and_bound_to_their_purpose() -> None:
    one, other = owner_key(), owner_key()
    assert one.digest("a", b"x") == one.digest("a", b"x")
    assert one.digest("a", b"x") != other.digest("a", b"x")
    assert one.digest("a", b"x") != one.digest("b", b"x")
    assert one.digest("ab", b"c") != one.digest("a", b"bc")
    assert one.digest("a", b"x") != plain_digest("a", b"x")
    assert plain_digest("ab", b"c") != plain_digest("a", b"bc")
    assert len(one.digest("a", b"x")) == len(plain_digest("a", b"x")) == 32


def test_reprs_of_keys_show_no_key_material(tmp_path: Path) -> None:
    dek = new_dek()
    key, ring = OwnerKey(uuid7(), "alice", dek), KeyRing.generate(tmp_path / "ring")
    secret = json.loads((tmp_path / "ring").read_text())["keys"][ring.current]
    for shown in (repr(key), str(key), f"{ring!r}", str(ring)):
        assert dek.hex() not in shown
        assert secret not in shown
        assert "alice" not in shown
    for secret_object in (key, ring):
        with pytest.raises(TypeError):
            pickle.dumps(secret_object)


def test_generated_ring_is_private_complete_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    umask = os.umask(0)
    try:
        KeyRing.generate(path)
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    before = path.read_bytes()
    with pytest.raises(KeyRingError):
        KeyRing.generate(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["ring.json"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_ring_file_that_other_users_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "ring.json"
    KeyRing.generate(path)
    path.chmod(mode)
    with pytest.raises(KeyRingError, match="0600"):
        KeyRing.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"current": "a", "keys": {}}', '{"current": "a", "keys": {"a": "c2hvcnQ="}}',
     '{"current": "a", "keys": {"a": "not base64, SECRET"}}', '{"current": "a", "keys": {"a": 3}}'],
)  # fmt: skip
def test_malformed_ring_is_refused_without_quoting_it(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ring.json"
    path.touch(0o600)
    path.write_text(text)
    with pytest.raises(KeyRingError) as caught:
        KeyRing.load(path)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_ring_file_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyRingError, match="does not exist"):
        KeyRing.load(tmp_path / "nowhere")


def test_wrapped_keys_unwrap_only_for_their_owner_and_id(tmp_path: Path) -> None:
    ring = KeyRing.generate(tmp_path / "ring")
    dek, key_id = new_dek(), uuid7()
    wrapped, kek_id = ring.wrap("alice", key_id, dek)
    assert dek not in wrapped
    reread = KeyRing.load(tmp_path / "ring").unwrap("alice", key_id, wrapped, kek_id)
    assert reread.digest("p", b"x") == OwnerKey(key_id, "alice", dek).digest("p", b"x")
    with pytest.raises(SealBroken):
        ring.unwrap("bob", key_id, wrapped, kek_id)
    with pytest.raises(SealBroken):
        ring.unwrap("alice", uuid7(), wrapped, kek_id)
    with pytest.raises(SealBroken):
        ring.unwrap("alice", key_id, b"short", kek_id)
    with pytest.raises(UnknownKey):
        ring.unwrap("alice", key_id, wrapped, "kek-of-another-ring")


def test_older_key_of_the_ring_still_unwraps() -> None:
    old, new = os.urandom(32), os.urandom(32)
    dek, key_id = new_dek(), uuid7()
    wrapped, kek_id = KeyRing({"old": old}, "old").wrap("alice", key_id, dek)
    ring = KeyRing({"old": old, "new": new}, "new")
    assert ring.unwrap("alice", key_id, wrapped, kek_id).key_id == key_id
    assert ring.wrap("alice", key_id, dek)[1] == "new"


def test_uuid7_is_one_and_sorts_by_time() -> None:
    ids = [uuid7() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(one.version == 7 and one.variant == UUID(int=0x8 << 60).variant for one in ids)
    milliseconds = [one.int >> 80 for one in ids]
    assert milliseconds == sorted(milliseconds)
