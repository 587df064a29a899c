"""Start of a worker process: it waits for its database, and ends if it cannot start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.faults.proxy import Mode, Proxy
from tests.in_process_fetcher import LANE
from tests.waiting import eventually
from workers.home import CHECKOUT
from workers.stack.dev_stack import DevStack
from workers.stack.process import base_environment


def test_worker_waits_for_its_database_and_ends_if_it_cannot_start(
    clean: DevStack, proxy: Proxy, through_proxy: Callable[[str], str], tmp_path: Path
) -> None:
    proxy.mode = Mode.CUT
    ready, log = tmp_path / "ready", tmp_path / "log"
    environment = base_environment() | {
        "VESTRY_DATABASE_URL": through_proxy(clean.database_url("vestry_shareable")),
        "VESTRY_BROKER_URL": clean.broker_url("shareable"),
        "VESTRY_PRIVACY": "shareable",
        "VESTRY_LANES": LANE,
        "VESTRY_EMBEDDING_BACKEND": "echo",
        "VESTRY_LEASE_S": "4",
        "VESTRY_HEARTBEAT_S": "1",
        "VESTRY_READY_FILE": str(ready),
    }
    with log.open("w") as out:
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers.worker"],
            env=environment, cwd=CHECKOUT, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        eventually(lambda: "waiting for the database" in log.read_text())
        proxy.mode = Mode.OPEN
        eventually(ready.exists)
    finally:
        worker.kill()
        worker.wait()
    # Celery by itself would log the failed start and keep running.
    with psycopg.connect(clean.superuser_url, autocommit=True) as admin:
        revoke = "EXECUTE ON FUNCTION vestry.ensure_space_v1 {} vestry_shareable"
        admin.execute("REVOKE " + revoke.format("FROM"))
        try:
            done = subprocess.run(
                [sys.executable, "-m", "workers.worker"],
                env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=180,
                check=False,
            )  # fmt: skip
        finally:
            admin.execute("GRANT " + revoke.format("TO"))
    assert done.returncode != 0
    assert "the worker cannot start (InsufficientPrivilege)" in done.stderr
