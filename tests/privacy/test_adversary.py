"""A compromised cloud worker obtains no private byte."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from tests.privacy.adversary import ACCOUNT, BROKER, SQL, Adversary, done_within
from tests.privacy.conftest import CANARY, Canary
from tests.privacy.needles import byte_encodings, encodings, inflated

ATTEMPTS = {**SQL, **BROKER, **ACCOUNT}
DOCS = Path(__file__).resolve().parents[2] / "docs" / "privacy.md"

pytestmark = [pytest.mark.slow, pytest.mark.stack(CANARY)]


@pytest.fixture(scope="module")
def adversary(canary: Canary) -> Adversary:
    state = canary.up.state()
    pids = {process["name"]: process["pid"] for process in state["processes"]}
    pids["supervisor"] = state["supervisor"]["pid"]
    job = next(job for about, job, _ in canary.private.jobs if about == "texts")
    return Adversary(canary.stack, job.id, pids)


@pytest.fixture(scope="module")
def needles(canary: Canary) -> set[bytes]:
    """Bytes that no attempt may return: private tokens, sealed content, keys, others' passwords."""
    secrets = {needle for _, needle in encodings(canary.private.marker.text)}
    home = canary.stack.home
    for key in json.loads(home.keyring.read_text())["keys"].values():
        secrets |= {needle for _, needle in byte_encodings("key", base64.b64decode(key))}
        secrets.add(key.encode())
    for path in home.secrets.glob("*.password"):
        if "cloud" not in path.name:
            secrets.add(path.read_bytes().strip())
    with canary.stack.superuser() as conn:
        for table in ("payloads", "results", "blobs"):
            query = f"SELECT body FROM vestry.private_{table} LIMIT 50"
            sealed = [bytes(row[0])[29:61] for row in conn.execute(query)]  # type: ignore[call-overload]
            secrets |= {form for body in sealed for form in (body, body.hex().encode())}
        for (wrapped,) in conn.execute("SELECT wrapped FROM vestry.owner_keys"):
            secrets |= {bytes(wrapped), bytes(wrapped).hex().encode()}
    return secrets


def as_bytes(result: Any) -> bytes:
    """The whole result of an attempt, as bytes."""
    match result:
        case bytes() | bytearray() | memoryview():
            return bytes(result)
        case dict():
            return b"\n".join(as_bytes(pair) for pair in result.items())
        case list() | tuple() | set():
            return b"\n".join(as_bytes(item) for item in result)
        case _:
            return str(result).encode("utf-8", "surrogateescape")


def test_attempts_are_distinct_and_at_least_sixty() -> None:
    assert len(ATTEMPTS) == len(SQL) + len(BROKER) + len(ACCOUNT)
    assert len(ATTEMPTS) >= 60


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_obtains_no_private_byte(
    adversary: Adversary, needles: set[bytes], name: str
) -> None:
    if name in ACCOUNT and os.geteuid() != 0:
        pytest.skip("processes have separate accounts only under root")
    result, _ = done_within(ATTEMPTS[name], adversary)
    plain = as_bytes(result)
    for content in (plain, *inflated(plain)):
        assert not [needle for needle in needles if needle in content], name


def test_needles_are_found_where_they_are_readable(canary: Canary, needles: set[bytes]) -> None:
    """The private worker's login and account can read them."""
    with canary.stack.superuser() as conn:
        rows = conn.execute("SELECT body FROM vestry.private_results").fetchall()
        keys = conn.execute("SELECT wrapped FROM vestry.owner_keys").fetchall()
    for content in (as_bytes(rows), as_bytes(keys), canary.stack.home.keyring.read_bytes()):
        assert [needle for needle in needles if needle in content]


def test_private_tables_are_denied_not_empty(adversary: Adversary) -> None:
    for name in SQL:
        if re.match(r"SELECT \* FROM private_|the same, |COPY private_|wrapped keys", name):
            assert done_within(SQL[name], adversary)[1] == "InsufficientPrivilege", name


def test_forged_hints_run_nothing(canary: Canary, adversary: Adversary) -> None:
    for name, attempt in BROKER.items():
        if "forged" in name:
            done_within(attempt, adversary)
    time.sleep(2)  # long enough for a worker to act on a hint
    with canary.stack.superuser() as conn:
        row = conn.execute(
            """SELECT (SELECT state FROM vestry.jobs WHERE id = %(job)s),
                      (SELECT count(*) FROM vestry.receipts WHERE job_id = %(job)s),
                      (SELECT count(*) FROM vestry.egress WHERE %(job)s = ANY (job_ids))""",
            {"job": adversary.job},
        ).fetchone()
    assert row == ("succeeded", 1, 0)
    assert not [r for r in canary.stack.cloud.requests if str(adversary.job) in str(r)]


def test_attempts_are_listed_in_the_documentation() -> None:
    text = " ".join(DOCS.read_text(encoding="utf-8").split())
    assert [name for name in ATTEMPTS if name not in text] == []
