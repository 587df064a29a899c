"""A client of a stack's Flower, with its password."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any
from uuid import UUID

TIMEOUT_S = 20.0


class FlowerClient:
    """Client of one privacy class's Flower; `config` is its entry in the stack's client file."""

    def __init__(self, config: dict[str, str]) -> None:
        self.url = config["url"]
        password = Path(config["password_file"]).read_text(encoding="utf-8").strip()
        self.password = password
        self.user = config["user"]

    def get(self, path: str, *, user: str | None = "", password: str = "") -> tuple[int, str]:
        """Status and body of a path, as `user`: empty for Flower's own, None for no login."""
        request = urllib.request.Request(self.url + path)  # noqa: S310 - loopback
        if user is not None:
            pair = f"{user or self.user}:{password or self.password}"
            token = base64.b64encode(pair.encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
                return response.status, response.read().decode("utf-8", "replace")
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace")

    def task(self, job: UUID) -> dict[str, Any]:
        """A job's task in the API; empty if the API has none."""
        status, body = self.get(f"/api/task/info/{job}")
        return json.loads(body) if status == 200 else {}

    def tasks(self) -> dict[str, dict[str, Any]]:
        """Every task that the API lists, by id."""
        listed: dict[str, dict[str, Any]] = json.loads(self.get("/api/tasks?limit=10000")[1])
        return listed

    def workers(self) -> dict[str, dict[str, Any]]:
        """Every worker by node name, inspected anew."""
        inspected: dict[str, dict[str, Any]] = json.loads(self.get("/api/workers?refresh=1")[1])
        return inspected

    def worker_page(self, name: str) -> tuple[int, str]:
        """A worker's page."""
        return self.get("/worker/" + urllib.parse.quote(name))
