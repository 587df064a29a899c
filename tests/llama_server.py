"""A real llama.cpp server for tests: the process that the stack runs, with the packaged model."""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.run_dir import timed_start
from workers.home import CHECKOUT, Home, write_private
from workers.llama_server import PACKAGED_ALIAS
from workers.stack.dev_stack import wait_until
from workers.stack.process import Command, base_environment, spawn, stop
from workers.stack.supervisor import http_ready

CONTEXT = 1024


@dataclass(frozen=True, slots=True)
class Llama:
    """A running server.

    Attributes:
        url: without a path; OpenAI's protocol is below /v1, Anthropic's at /v1/messages.
        key: its API key.
        log: its log file.
    """

    url: str
    key: str = field(repr=False)
    log: Path
    process: subprocess.Popen[bytes]
    model: str = PACKAGED_ALIAS
    context: int = CONTEXT


@contextmanager
def llama_server(settings: Mapping[str, str] | None = None) -> Iterator[Llama]:
    """Run a server on a free port.

    Args:
        settings: further VESTRY_LLAMA_… settings.
    """
    with tempfile.TemporaryDirectory(prefix="vestry-llama-") as directory:
        home = Home(Path(directory))
        home.create()
        port, key = home.settle_port("llama"), secrets.token_urlsafe(16)
        key_file = home.secrets / "key"
        write_private(key_file, key)
        command = Command(
            argv=[sys.executable, "-m", "workers.llama_server"],
            log=home.logs / "llama.log",
            environment={
                **base_environment(),
                "VESTRY_LLAMA_PORT": str(port),
                "VESTRY_LLAMA_KEY_FILE": str(key_file),
                "VESTRY_LLAMA_CONTEXT": str(CONTEXT),
                "VESTRY_LLAMA_THREADS": "1",
                **(settings or {}),
            },
            cwd=CHECKOUT,
        )
        process = spawn(command)
        url = f"http://127.0.0.1:{port}"
        try:
            health = http_ready(lambda: f"{url}/health")
            with timed_start("a llama.cpp server"):
                wait_until(health, lambda: process.poll() is None, command.log)
            yield Llama(url, key, command.log, process)
        finally:
            stop(process, command)
