"""A stack whose cloud backends call a fault server: real clients, real HTTP, faults on request."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from inference.catalogue.loader import SHIPPED
from tests.cluster_template import migrated_home
from tests.faultserver import FaultServer
from tests.stacks import ECHO_SETTINGS, INFERENCE, start_stack
from tests.temp_stack_dir import temporary_home
from workers.stack.background import BackgroundStack

KEY = "sesame-of-the-cloud"
WORKERS = (*INFERENCE, "shareable-cloud")
QUICK = {
    "VESTRY_LLAMA": "off",
    "VESTRY_BREAKER_FAILURES": "2",
    "VESTRY_BREAKER_COOLDOWN_S": "0.5",
    "VESTRY_BREAKER_MAX_COOLDOWN_S": "2",
}


def key_file(directory: Path) -> Path:
    """The file with the clouds' API key."""
    path = directory / "cloud.key"
    path.write_text(KEY)
    path.chmod(0o600)
    return path


def catalogue_file(directory: Path, requests_per_minute: int, window_s: float = 60.0) -> Path:
    """The shipped catalogue with another rate limit for the clouds."""
    text = SHIPPED.read_text(encoding="utf-8")
    limit = f"requests_per_minute: {requests_per_minute}, rate_window_s: {window_s}"
    text = re.sub(r"requests_per_minute: \d+", limit, text)
    path = directory / "catalogue.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@contextmanager
def cloud_stack(
    cloud: FaultServer, only: Sequence[str] = WORKERS, *, requests_per_minute: int = 100_000
) -> Iterator[BackgroundStack]:
    """A stack whose two clouds are one server; the echo backend serves local jobs."""
    with migrated_home() as home, temporary_home("vestry-keys-") as keys:
        file = key_file(keys)
        settings = {
            **ECHO_SETTINGS,
            **QUICK,
            "VESTRY_CATALOGUE": str(catalogue_file(keys, requests_per_minute)),
            "VESTRY_BACKENDS": f"openai={cloud.url}/v1 anthropic={cloud.url}",
            "VESTRY_BACKEND_KEYS": f"openai={file} anthropic={file}",
        }
        with start_stack(home, settings, only) as running:
            yield running
