"""Celery with its default settings, the baseline for Vestry: `celery -A benchmarks.bare_celery worker`.

It uses Vestry's broker server and the pool and threads of Vestry's worker; otherwise Celery's defaults,
with early acknowledgement. Results that a benchmark waits for are stored in Redis.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from workers.home import CHECKOUT
from workers.settings import key_prefix
from workers.stack.process import base_environment
from workers.stack.valkey import ValkeyServer

USER = "shareable"
"""Login of the stack's broker; benchmarks with bare Celery run no Vestry workers under it."""
PREFIX = key_prefix(USER)
QUEUE = "bare"
URL = "BENCHMARK_BROKER_URL"
START_TIMEOUT_S = 30.0


def make_app(url: str) -> Celery:
    """The Celery application of the worker and of the sender."""
    app = Celery("bare", broker=url, backend=url, set_as_current=False)
    app.conf.update(
        task_default_queue=QUEUE,
        broker_transport_options={"global_keyprefix": PREFIX},
        result_backend_transport_options={"global_keyprefix": PREFIX},
        broker_connection_retry_on_startup=True,
        worker_hijack_root_logger=False,
    )
    app.task(_nothing, name="nothing", ignore_result=True)
    app.task(_echo, name="echo")
    return app


def _nothing(number: int) -> None:
    del number


def _echo(text: str) -> str:
    return text


def __getattr__(name: str) -> Any:
    """Create `app` for Celery's command line; importing this module then needs no broker."""
    if name == "app":
        return make_app(os.environ[URL])
    raise AttributeError(name)


@dataclass(frozen=True, slots=True)
class BareWorker:
    """A running worker, and the application that sends tasks to it."""

    app: Celery
    broker: redis.Redis
    node: str

    def pause(self) -> None:
        """Stop consuming messages."""
        self.app.control.cancel_consumer(QUEUE, destination=[self.node], reply=True)

    def resume(self) -> None:
        """Consume messages again."""
        self.app.control.add_consumer(QUEUE, destination=[self.node], reply=True)

    def waiting(self) -> int:
        """Number of messages in the queue."""
        return int(self.broker.llen(PREFIX + QUEUE))

    def done(self, task: str) -> int:
        """Number of tasks of a name that the worker has started; 0 if it does not respond."""
        stats = self.app.control.inspect([self.node], timeout=2.0).stats() or {}
        return int(stats.get(self.node, {}).get("total", {}).get(task, 0))


@contextmanager
def bare_worker(
    server: ValkeyServer, concurrency: int, log: Path, *, events: bool, nice: int = 0
) -> Iterator[BareWorker]:
    """Run a worker until the end of the block.

    Args:
        server: the stack's broker.
        concurrency: number of threads.
        log: file for the worker's output.
        events: send task events, as Vestry's workers do.
        nice: the worker's priority, equal to that of the Vestry worker that it is compared with.
    """
    url = server.url(USER)
    node = f"bare-{'events' if events else 'quiet'}@localhost"
    argv = [
        "nice", "-n", str(nice),
        sys.executable, "-m", "celery", "-A", "benchmarks.bare_celery", "worker", "-P", "threads",
        "-c", str(concurrency), "-n", node, "-l", "WARNING", "--without-gossip", "--without-mingle",
        *(["-E"] if events else []),
    ]  # fmt: skip
    with log.open("ab") as out:
        process = subprocess.Popen(
            argv, env={**base_environment(), URL: url}, cwd=CHECKOUT, stdout=out, stderr=out
        )
    app = make_app(url)
    try:
        with redis.Redis.from_url(url) as broker:
            worker = BareWorker(app, broker, node)
            _wait_until_ready(worker, process, log)
            yield worker
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        app.close()


def _wait_until_ready(worker: BareWorker, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not worker.app.control.ping([worker.node], timeout=0.5):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"bare Celery did not start: {log.read_text()[-2000:]}")
