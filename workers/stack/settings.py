"""Settings of `vestry up`: which there are, and which of its environment its processes take over."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from workers.model_servers import plan
from workers.stack import accounts

TUNABLES = (
    "VESTRY_SLOTS",
    "VESTRY_THREADS",
    "VESTRY_EMBEDDING_BACKEND",
    "VESTRY_EMBEDDING_MODEL",
    "VESTRY_DEVICE",
    "VESTRY_CATALOGUE",
    "VESTRY_TESSDATA",
    "VESTRY_OCR_LANGUAGES",
    "VESTRY_RERANK_MODEL",
    "VESTRY_CLOUD_BUDGET_USD",
    "VESTRY_BREAKER_FAILURES",
    "VESTRY_BREAKER_COOLDOWN_S",
    "VESTRY_BREAKER_LONGEST_S",
    "VESTRY_LEASE_S",
    "VESTRY_HEARTBEAT_S",
    "VESTRY_MAX_RUN_S",
    "VESTRY_WINDOW",
    "VESTRY_POLL_S",
    "VESTRY_DEAF_S",
    "VESTRY_BATCH_JOBS",
    "VESTRY_BATCH_S",
    "VESTRY_INTERACTIVE_BATCH_JOBS",
    "VESTRY_BACKOFF_CAP_S",
    "VESTRY_KEEP_JOBS_S",
    "VESTRY_LOG_LEVEL",
)
"""Settings that everybody may know, taken over from the environment of `vestry up`."""

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ONLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Given as 0 to `vestry up`, they are 0 for every process: a model may then be downloaded."""
PATHS = (
    "VESTRY_CATALOGUE",
    "VESTRY_EMBEDDING_MODEL",
    "VESTRY_LLAMA_MODEL",
    "VESTRY_RERANK_MODEL",
    "VESTRY_TESSDATA",
)
"""Settings that may name a file."""


def required_paths(settings: Mapping[str, str]) -> tuple[Path, ...]:
    """Files and directories outside the checkout that workers read."""
    named = (settings[name] for name in PATHS if settings.get(name, "").startswith("/"))
    return (*map(Path, named), model_cache())


def model_cache() -> Path:
    """Where the model libraries keep what they fetched."""
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse what is not a setting of the stack: a slip of the pen would change nothing.

    Raises:
        ValueError: a name is unknown.
    """
    known = {*TUNABLES, *plan.SETTINGS, accounts.SETTING}
    if unknown := sorted(settings.keys() - known):
        raise ValueError(
            f"cannot be set: {', '.join(unknown)}; these can: {', '.join(sorted(known))}"
        )


def inherited_environment() -> dict[str, str]:
    """The stack's settings in the environment of `vestry up`."""
    asked = {name: "0" for name in ONLINE if os.environ.get(name) == "0"}
    names = (*TUNABLES, *plan.SETTINGS, accounts.SETTING)
    return asked | {name: os.environ[name] for name in names if name in os.environ}
