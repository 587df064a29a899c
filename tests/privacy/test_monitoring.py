"""Flower and remote control: read-only, and only with the password."""

from __future__ import annotations

import base64
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from flower.urls import handlers

from tests.flower_client import FlowerClient
from tests.privacy.conftest import CANARY, Canary
from tests.waiting import eventually
from workers.app import READ_ONLY_PANEL, make_app
from workers.stack.valkey import PRIVACIES, ValkeyServer

pytestmark = [pytest.mark.slow, pytest.mark.stack(CANARY)]

OPEN = {"/metrics", "/healthcheck", "/logout", "/static/css/flower.css", "/favicon.ico"}
"""Paths that Flower cannot protect: they show at most names of workers and kinds."""
WORKER = ("pool/restart", "pool/grow", "pool/shrink", "pool/autoscale", "shutdown",
          "queue/add-consumer", "queue/cancel-consumer")  # fmt: skip
TASK = ("apply", "async-apply", "send-task", "abort", "timeout", "rate-limit", "revoke")


def paths() -> list[str]:
    """A path for each of Flower's routes."""
    routes = []
    for spec in handlers:
        pattern = str(spec[0]) if isinstance(spec, tuple) else spec.matcher.regex.pattern
        routes.append(re.sub(r"\(.*?\)", "x", pattern).replace("$", "").replace("?", ""))
    return sorted({path for path in routes if path.startswith("/") and ".*" not in path})


@pytest.fixture(params=PRIVACIES)
def flower(canary: Canary, request: pytest.FixtureRequest) -> FlowerClient:
    return FlowerClient(canary.stack.client["flower"][request.param])


def test_every_protectable_path_of_flower_requires_the_password(
    flower: FlowerClient,
) -> None:
    statuses = {path: flower.get(path, user=None)[0] for path in paths()}
    assert len(statuses) > 20
    seen = {path for path, status in statuses.items() if status == 200}
    assert seen <= OPEN
    assert {"/metrics", "/healthcheck"} <= seen


def test_flower_refuses_commands_to_workers(canary: Canary, flower: FlowerClient) -> None:
    worker = next(iter(flower.workers()))
    for path in (
        *(f"/api/worker/{action}/{worker}" for action in WORKER),
        *(f"/api/task/{action}/embedding" for action in TASK),
    ):
        assert post(flower, path) in {401, 403, 404, 405}, path
    assert canary.up.running()


def post(flower: FlowerClient, path: str) -> int:
    request = urllib.request.Request(flower.url + path, data=b"queue=x", method="POST")  # noqa: S310
    pair = f"{flower.user}:{flower.password}".encode()
    request.add_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=20) as response:  # noqa: S310
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_flower_listens_on_loopback(canary: Canary) -> None:
    for flower in canary.stack.client["flower"].values():
        port = int(flower["url"].rpartition(":")[2])
        listening = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()
        addresses = {line.split()[1] for line in listening if line.split()[3] == "0A"}
        assert [a for a in addresses if a.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def control(canary: Canary, user: str) -> Any:
    privacy = "private" if user == "private" else "shareable"
    return make_app(ValkeyServer(canary.stack.home).url(user), privacy).control


def responding(control: Any, expected: int) -> set[str]:
    """Names of workers that respond to a ping; repeated, since busy workers are slow."""
    names: set[str] = set()

    def enough() -> bool:
        names.update(next(iter(reply)) for reply in control.ping(timeout=1.5))
        return len(names) >= expected

    eventually(enough)
    enough()  # once more, to detect surplus workers
    return names


def test_private_worker_responds_to_inspection_and_refuses_commands(canary: Canary) -> None:
    panel = control(canary, "private")
    assert len(responding(panel, 4)) == 4
    for command in ("add_consumer", "shutdown", "pool_grow", "rate_limit", "revoke", "terminate"):
        assert command not in READ_ONLY_PANEL
        arguments = {"queue": "shareable.bulk.cloud"} if command == "add_consumer" else {}
        replies = panel.broadcast(command, arguments=arguments, reply=True, timeout=0.3)
        assert not [r for reply in replies for r in reply.values() if "ok" in r]
    queues: dict[str, Any] = {}

    def inspected() -> bool:
        queues.update(panel.inspect(timeout=1.5).active_queues() or {})
        return bool(queues)

    eventually(inspected)
    assert {queue["name"].split(".")[0] for active in queues.values() for queue in active} == {
        "private"
    }


def test_cloud_worker_receives_no_commands(canary: Canary) -> None:
    names = responding(control(canary, "shareable"), 4)
    assert len(names) == 4
    assert not [name for name in names if "cloud" in name]


def test_private_workers_write_no_core_dumps(canary: Canary) -> None:
    for process in canary.up.state()["processes"]:
        if process["name"].startswith("private-"):
            limits = Path(f"/proc/{process['pid']}/limits").read_text(encoding="ascii")
            line = next(line for line in limits.splitlines() if line.startswith("Max core"))
            assert line.split()[4:6] == ["0", "0"]
            # Owned by root: no other account can read it.
            assert Path(f"/proc/{process['pid']}/environ").stat().st_uid == 0
