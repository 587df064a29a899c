"""Run inside a network namespace: every kind of private job, on the real models, with loopback only.

Prints one JSON document: what came of each, and what happens to a connection to anywhere else.
"""

from __future__ import annotations

import fcntl
import json
import socket
import struct
import sys
from pathlib import Path
from typing import Any

import psycopg

from tests.page_files import pdf, text_page
from vestry import Classification, Document, Embedding, Generation, Ocr, Rerank, Vestry
from workers.stack.background import start_background

ONLY = ("dispatcher", "private-interactive-gpu", "private-interactive-cpu", "llama-interactive")
PATIENCE_S = 120.0
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def loopback_up() -> None:
    """Bring the one interface of a new namespace up."""
    with socket.socket() as any_socket:
        request = struct.pack("16sH14x", b"lo", IFF_UP)
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, request)


def outside() -> str:
    """How the system answers a connection to elsewhere."""
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


def main() -> None:
    loopback_up()
    told: dict[str, Any] = {
        "outside": outside(),
        "interfaces": sorted(dict(socket.if_nameindex()).values()),
    }
    settings = {"VESTRY_OLLAMA": "off", "VESTRY_LLAMA": "auto"}
    with start_background(Path(sys.argv[1]), settings, flower=False, only=ONLY) as up:
        url, ring = up.client["database_url"], up.client["keyring"]
        with Vestry(url, ring) as vestry, psycopg.connect(url, autocommit=True) as conn:
            asked = {
                name: vestry.enqueue(
                    conn, job, owner="ann", privacy="private", latency="interactive"
                )
                for name, job in jobs().items()
            }
            told["jobs"] = {
                name: type(vestry.wait(job, PATIENCE_S)).__name__ for name, job in asked.items()
            }
            told["hits"] = len(vestry.search("accounts", owner="ann", privacy="private"))
            told["localities"] = [
                row[0] for row in conn.execute("SELECT DISTINCT locality FROM vestry.receipts")
            ]
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
