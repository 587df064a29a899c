"""The command line on a complete stack whose workers use the echo backend."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import psycopg
import pytest

from tests.stacks import ECHO
from workers.stack.background import BackgroundStack

pytestmark = pytest.mark.stack(ECHO)

RUN = [sys.executable, "-c", "import sys; from vestry.cli import main; sys.exit(main())"]
DEADLINE_S = 240


@pytest.fixture
def owner() -> str:
    return f"owner-{uuid4().hex[:8]}"


def environment(up: BackgroundStack) -> dict[str, str]:
    others = {name: value for name, value in os.environ.items() if not name.startswith("VESTRY_")}
    return {**others, "VESTRY_HOME": str(up.home), "COLUMNS": "200"}


def vestry(
    up: BackgroundStack, *arguments: str, code: int = 0, stdin: bytes | None = None
) -> tuple[str, str]:
    done = subprocess.run(
        [*RUN, *arguments],
        env=environment(up),
        input=stdin or b"",
        capture_output=True,
        timeout=DEADLINE_S,
        check=False,
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, f"{done.returncode}: {out}{err}"
    assert "Traceback" not in err
    return out, err


def document(
    up: BackgroundStack, *arguments: str, code: int = 0, stdin: bytes | None = None
) -> Any:
    """The JSON document on stdout; any other output there makes the parser fail."""
    return json.loads(vestry(up, *arguments, "--json", code=code, stdin=stdin)[0])


def lane_status(up: BackgroundStack, lane: str) -> Any:
    (row,) = [row for row in document(up, "lanes")["lanes"] if row["lane"] == lane]
    return row


def diary(path: Path, entries: int, word: str = "office") -> Path:
    lines = (
        json.dumps(
            {"id": f"e{n}", "date": f"1660-01-{n % 28 + 1:02}", "text": f"{word} number{n}."}
        )
        for n in range(entries)
    )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def index_options(owner: str, privacy: str = "private", source: str = "diary") -> list[str]:
    return ["--source", source, "--owner", owner, "--privacy", privacy]


def test_submit_with_wait_prints_vectors(up: BackgroundStack, owner: str) -> None:
    result = document(
        up, "submit", "embedding", "--text", "up betimes", "--text", "to bed",
        "--owner", owner, "--privacy", "private", "--wait", "--timeout", "60",
    )  # fmt: skip
    assert result["state"] == "succeeded"
    assert result["kind"] == "embedding"
    assert result["error"] is None
    assert [len(vector) for vector in result["result"]["vectors"]] == [384, 384]
    assert result["result"]["space"]
    again = document(up, "result", result["job"])
    assert again == result
    status = document(up, "status", result["job"])
    assert (status["owner"], status["privacy"], status["lane"], status["attempt"]) == (
        owner,
        "private",
        "private.interactive.gpu",
        1,
    )
    assert "384" in vestry(up, "wait", result["job"])[0]


def test_submit_with_repeated_idempotency_key_returns_first_job(
    up: BackgroundStack, owner: str
) -> None:
    command = ["submit", "embedding", "--owner", owner, "--privacy", "private"]
    command += ["--idempotency-key", "k", "--text"]
    first = document(up, *command, "one")
    second = document(up, *command, "one")
    assert (first["job"], first["created"], second["created"]) == (second["job"], True, False)
    assert document(up, *command, "two", code=2)["error"]["code"] == "idempotency_conflict"


def test_submit_of_failing_job_exits_with_code_1(up: BackgroundStack, owner: str) -> None:
    result = document(
        up, "submit", "embedding", "--text", "echo!bad-request", "--owner", owner,
        "--privacy", "shareable", "--wait", "--timeout", "60", code=1,
    )  # fmt: skip
    assert result["state"] == "dead"
    assert result["result"] is None
    assert result["error"]["code"]
    assert document(up, "wait", result["job"], code=1) == result


def test_index_repeated_embeds_nothing(up: BackgroundStack, owner: str, tmp_path: Path) -> None:
    file = diary(tmp_path / "diary.jsonl", 300)
    first = document(up, "index", str(file), *index_options(owner))
    assert {name: first[name] for name in ("documents", "chunks", "unchanged", "failed")} == {
        "documents": 300,
        "chunks": 300,
        "unchanged": 0,
        "failed": 0,
    }
    assert first["embedded"] == 300
    again = document(up, "index", str(file), *index_options(owner))
    assert (again["documents"], again["embedded"], again["unchanged"]) == (300, 0, 300)


def test_search_returns_hits_of_its_owner_only(
    up: BackgroundStack, owner: str, tmp_path: Path
) -> None:
    other = f"{owner}-other"
    vestry(up, "index", str(diary(tmp_path / "a.jsonl", 20)), *index_options(owner))
    vestry(up, "index", str(diary(tmp_path / "b.jsonl", 20, "cellar")), *index_options(other))
    began = time.monotonic()
    result = document(up, "search", "office number7", "--owner", owner, "--limit", "3")
    assert result["degraded"] is False
    assert result["space"]
    assert 0 < result["queue_s"] < result["embedding_s"]
    took_s = time.monotonic() - began
    assert 0 < result["database_s"] < took_s - result["embedding_s"]
    assert len(result["hits"]) == 3
    best = result["hits"][0]
    assert (best["document"], best["owner"], best["source"]) == ("e7", owner, "diary")
    assert best["date"] == "1660-01-08"
    assert best["text"] == "office number7."
    assert best["score"] == pytest.approx(1, abs=0.01)
    everything = document(up, "search", "cellar number7", "--owner", owner, "--limit", "100")
    assert {hit["owner"] for hit in everything["hits"]} == {owner}
    human, _ = vestry(up, "search", "office number7", "--owner", owner, "--limit", "1")
    assert "1660-01-08" in human
    assert "office number7." in human


def test_search_includes_shareable_source_on_request(
    up: BackgroundStack, owner: str, tmp_path: Path
) -> None:
    library = f"lib-{owner}"
    verses = tmp_path / "verses.txt"
    verses.write_text("Ge1:1 In the beginning\nGe1:2 darkness upon the deep\n", encoding="utf-8")
    vestry(up, "index", str(verses), *index_options("library", "shareable", library))
    vestry(up, "index", str(diary(tmp_path / "a.jsonl", 3)), *index_options(owner))
    query = ["search", "darkness upon the deep", "--owner", owner]
    assert {hit["source"] for hit in document(up, *query)["hits"]} == {"diary"}
    both = document(up, *query, "--library", library)["hits"]
    assert both[0]["document"] == "Ge1:2"
    assert {hit["source"] for hit in both} == {"diary", library}
    only = document(up, *query, "--source", library)["hits"]
    assert {hit["source"] for hit in only} == {library}


def test_index_reports_bad_lines_by_number_and_indexes_the_others(
    up: BackgroundStack, owner: str, tmp_path: Path
) -> None:
    file = tmp_path / "mixed.jsonl"
    good = b'{"id": "%d", "text": "good %d"}\n'
    file.write_bytes(
        good % (1, 1)
        + b'{"text": "unclosed\n'
        + b'{"text": "caf\xe9"}\n'
        + b'{"text": "nul \\u0000"}\n'
        + b'{"text": ""}\n'
        + b'{"id": "1", "text": "again"}\n'
        + json.dumps({"text": "a" * 1_100_000}).encode()
        + b"\n"
        + good % (8, 8)
    )
    result = document(up, "index", str(file), *index_options(owner), code=1)
    assert (result["documents"], result["failed"], result["embedded"]) == (8, 6, 2)
    assert [row["line"] for row in result["failures"]] == [2, 3, 4, 5, 6, 7]
    _, err = vestry(up, "index", str(file), *index_options(owner), code=1)
    for line in range(2, 8):
        assert f"{file}:{line}: " in err
    hits = document(up, "search", "good 8", "--owner", owner)["hits"]
    assert {hit["document"] for hit in hits} == {"1", "8"}


def test_index_reports_document_refused_by_the_worker_by_line(
    up: BackgroundStack, owner: str, tmp_path: Path
) -> None:
    file = tmp_path / "invalid_vector.jsonl"
    texts = ["first", "second", "echo!nan third", "fourth"]
    file.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    result = document(up, "index", str(file), *index_options(owner), code=1)
    assert [row["line"] for row in result["failures"]] == [3]
    assert (result["failed"], result["embedded"]) == (1, 3)


def test_index_reads_standard_input_and_can_drop_the_text(up: BackgroundStack, owner: str) -> None:
    result = document(
        up, "index", "-", *index_options(owner), "--no-keep-text",
        stdin=b'{"text":"secret thoughts","date":"1660-02-01"}\n',
    )  # fmt: skip
    assert result["embedded"] == 1
    (hit,) = document(up, "search", "secret thoughts", "--owner", owner)["hits"]
    assert hit["text"] is None
    assert hit["date"] == "1660-02-01"


def test_interrupted_index_keeps_its_jobs_and_can_be_repeated(
    up: BackgroundStack, owner: str, tmp_path: Path
) -> None:
    file = diary(tmp_path / "long.jsonl", 60)
    vestry(up, "lanes", "pause", "private.bulk.gpu")
    try:
        running = subprocess.Popen(
            [*RUN, "index", str(file), *index_options(owner)],
            env=environment(up),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # In a shell's background job children start with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )
        deadline = time.monotonic() + DEADLINE_S
        while lane_status(up, "private.bulk.gpu")["queued"] < 5 and time.monotonic() < deadline:
            time.sleep(0.1)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=DEADLINE_S)
        assert running.returncode == 130
        assert out == b""
        assert b"60 documents in 5 jobs" in err
        assert b"Traceback" not in err
    finally:
        vestry(up, "lanes", "resume", "private.bulk.gpu")
    again = document(up, "index", str(file), *index_options(owner))
    assert again["documents"] == 60
    assert again["failed"] == 0
    hits = document(up, "search", "office", "--owner", owner, "--limit", "100")["hits"]
    assert len(hits) == 60


def test_index_continues_after_restart_of_the_database(
    up: BackgroundStack, owner: str, tmp_path: Path
) -> None:
    file = diary(tmp_path / "long.jsonl", 400)
    running = subprocess.Popen(
        [*RUN, "index", str(file), *index_options(owner), "--batch", "2", "--json"],
        env=environment(up),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + DEADLINE_S
    with psycopg.connect(up.client["database_url"], autocommit=True) as conn:
        count = "SELECT count(*) FROM vestry.jobs WHERE owner = %s"
        while conn.execute(count, [owner]).fetchone() == (0,) and time.monotonic() < deadline:
            time.sleep(0.01)
    pid = up.pid("postgres")
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    out, err = running.communicate(timeout=DEADLINE_S)
    assert running.returncode == 0, (out + err).decode()
    result = json.loads(out)
    assert (result["documents"], result["failed"]) == (400, 0)
    assert result["embedded"] + result["unchanged"] + result["superseded"] == 400
    hits = document(up, "search", "office", "--owner", owner, "--limit", "1000")["hits"]
    assert len(hits) == 400


def test_paused_lane_is_shown_and_its_jobs_can_be_cancelled(
    up: BackgroundStack, owner: str
) -> None:
    lane = "shareable.bulk.gpu"
    assert document(up, "lanes", "pause", lane) == {"lane": lane, "paused": True}
    try:
        job = document(
            up, "submit", "embedding", "--text", "x", "--owner", owner,
            "--privacy", "shareable", "--latency", "bulk",
        )["job"]  # fmt: skip
        row = lane_status(up, lane)
        assert row["paused"] is True
        assert row["queued"] >= 1
        assert row["oldest_age_s"] >= 0
        timed_out = document(up, "wait", job, "--timeout", "0.2", code=4)
        assert (timed_out["state"], timed_out["error"]["code"]) == ("queued", "wait_timeout")
        assert document(up, "result", job, code=4)["error"]["code"] == "not_finished"
        cancelled = document(up, "cancel", job)
        assert cancelled == {"jobs": [{"job": job, "state": "cancelled"}], "unknown": []}
        assert document(up, "wait", job, code=1)["state"] == "cancelled"
    finally:
        assert document(up, "lanes", "resume", lane) == {"lane": lane, "paused": False}


def test_unknown_jobs_lanes_spaces_and_models_are_errors(up: BackgroundStack, owner: str) -> None:
    unknown_job = str(uuid4())
    for command in ("status", "wait", "result", "cancel"):
        assert document(up, command, unknown_job, code=2)["error"]["code"] == "unknown_job"
        assert document(up, command, "nonsense", code=2)["error"]["code"] == "invalid_input"
    assert document(up, "lanes", "pause", "no.such.lane", code=2)["error"]["code"] == "unknown_lane"
    query = ["search", "x", "--owner", owner, "--space"]
    assert document(up, *query, "no-such-space", code=2)["error"]["code"] == "unknown_space"
    unknown = document(
        up, "submit", "embedding", "--text", "x", "--owner", owner, "--privacy", "private",
        "--model", "no-such-model", "--wait", "--timeout", "60", code=1,
    )  # fmt: skip
    assert unknown["state"] == "dead"


def test_doctor_passes_on_ready_stack(up: BackgroundStack) -> None:
    result = document(up, "doctor")
    assert result["ok"] is True
    names = {check["name"] for check in result["checks"]}
    assert {"database", "pgvector", "migrations", "key ring", "process postgres"} <= names


def test_doctor_fails_on_key_ring_readable_by_others(up: BackgroundStack) -> None:
    ring = up.home / "keyring.json"
    ring.chmod(0o644)
    try:
        result = document(up, "doctor", code=1)
    finally:
        ring.chmod(0o600)
    assert [check["name"] for check in result["checks"] if not check["ok"]] == ["key ring"]


def test_status_without_job_counts_states_by_lane(up: BackgroundStack, owner: str) -> None:
    vestry(
        up,
        "submit",
        "embedding",
        "--text",
        "x",
        "--owner",
        owner,
        "--privacy",
        "private",
        "--wait",
    )
    rows = {row["lane"]: row for row in document(up, "status")["lanes"]}
    row = rows["private.interactive.gpu"]
    assert row["states"]["succeeded"] >= 1
    assert row["run_p50_s"] >= 0
    assert "private.interactive.gpu" in vestry(up, "status")[0]
