"""The demonstration of `make run` and every kind of private job, on the real models.

In a network namespace the script brings up the loopback interface, which is the only one. Prints one
JSON document: the demonstration's output, the result of each job, and the error of a connection to
another machine.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg

from tests.page_files import pdf, text_page
from tests.waiting import eventually
from vestry import Classification, Document, Embedding, Generation, Ocr, Rerank, Vestry
from workers.home import CHECKOUT
from workers.stack.background import BackgroundStack, running_in

TIMEOUT_S = 300.0
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def loopback_up() -> None:
    """Bring up the only interface of a new namespace."""
    with socket.socket() as control:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(control, SIOCSIFFLAGS, request)


def outside() -> str:
    """The system's answer to a connection to another machine."""
    with socket.socket() as probe:
        try:
            probe.connect(("192.0.2.1", 443))
        except OSError as error:
            return error.strerror or ""
    return "connected"


def jobs() -> dict[str, Any]:
    text = "Up and to the office, where all the morning upon the accounts of the navy."
    return {
        "embedding": Embedding(texts=[text]),
        "index": Embedding(documents=[Document(text, id="1")], source="diary"),
        "classification": Classification(text, ["work", "food"]),
        "rerank": Rerank("the navy's accounts", [text, "A sermon heard in church."]),
        "generation": Generation(prompt="Name a colour.", max_tokens=8),
        "ocr": Ocr(pdf(text_page(text))),
    }


def run_jobs(up: BackgroundStack) -> dict[str, Any]:
    """Run every kind of private job on a running stack."""
    url, ring = up.client["database_url"], up.client["keyring"]
    with Vestry(url, ring) as vestry, psycopg.connect(url, autocommit=True) as conn:
        enqueued = {
            name: vestry.enqueue(conn, job, owner="ann", privacy="private", latency="interactive")
            for name, job in jobs().items()
        }
        return {
            "jobs": {
                name: type(vestry.wait(job, TIMEOUT_S)).__name__ for name, job in enqueued.items()
            },
            "hits": len(vestry.search("accounts", owner="ann", privacy="private")),
            "localities": [
                row[0] for row in conn.execute("SELECT DISTINCT locality FROM vestry.receipts")
            ],
        }


def main() -> None:
    home = Path(sys.argv[1])
    report: dict[str, Any] = {}
    if "--without-network" in sys.argv:
        loopback_up()
        report["outside"] = outside()
        report["interfaces"] = sorted(dict(socket.if_nameindex()).values())
    with subprocess.Popen(
        [sys.executable, "-m", "workers.demo"], cwd=CHECKOUT, text=True,
        env=os.environ | {"VESTRY_HOME": str(home), "VESTRY_LLAMA": "auto"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as demo:  # fmt: skip

        def ready() -> bool:
            assert demo.poll() is None, "the demonstration ended before its stack was ready"
            running = running_in(home)
            return running is not None and bool(running.state().get("ready"))

        try:
            eventually(ready, within=TIMEOUT_S)
            up = running_in(home)
            assert up is not None
            report |= run_jobs(up)
            report["demo"], _ = demo.communicate(timeout=2 * TIMEOUT_S)
        except BaseException:
            demo.terminate()  # stops its stack
            raise
    report["status"] = demo.returncode
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
