"""Settings of `vestry up`: their names, and those that its processes inherit from its environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from workers.model_servers import plan
from workers.setting_names import reject_renamed
from workers.settings import check_values
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
    "VESTRY_BREAKER_MAX_COOLDOWN_S",
    "VESTRY_LEASE_S",
    "VESTRY_HEARTBEAT_S",
    "VESTRY_MAX_RUN_S",
    "VESTRY_HINTS_PER_SLOT",
    "VESTRY_POLL_S",
    "VESTRY_STALL_TIMEOUT_S",
    "VESTRY_BATCH_JOBS",
    "VESTRY_BATCH_S",
    "VESTRY_INTERACTIVE_BATCH_JOBS",
    "VESTRY_BACKOFF_CAP_S",
    "VESTRY_KEEP_JOBS_S",
    "VESTRY_LOG_LEVEL",
)
"""Settings without secrets, which every process inherits from the environment of `vestry up`."""

OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
ONLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Variables that are 0 in every process if `vestry up` has them as 0: models may then be downloaded."""
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
    paths = (settings[name] for name in PATHS if settings.get(name, "").startswith("/"))
    return (*map(Path, paths), model_cache())


def model_cache() -> Path:
    """Download cache of the model libraries."""
    return Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")


def check_settings(settings: Mapping[str, str]) -> None:
    """Refuse a name that is no setting of the stack: a misspelt one would have no effect.

    Raises:
        ValueError: a name is unknown, or has changed.
    """
    reject_renamed(settings)
    valid = {*TUNABLES, *plan.SETTINGS, accounts.SETTING}
    if unknown := sorted(settings.keys() - valid):
        raise ValueError(
            f"unknown settings: {', '.join(unknown)}; use one of: {', '.join(sorted(valid))}"
        )


def check_tunables(settings: Mapping[str, str]) -> None:
    """Refuse values that no process accepts, before any starts.

    Raises:
        ValueError: with one sentence per fault.
    """
    given = {name: settings[name] for name in TUNABLES if name in settings}
    if faults := check_values(given):
        raise ValueError("; ".join(faults))


def inherited_environment() -> dict[str, str]:
    """The stack's settings in this process's environment.

    Raises:
        ValueError: one of them has a former name.
    """
    reject_renamed(os.environ)
    online = {name: "0" for name in ONLINE if os.environ.get(name) == "0"}
    names = (*TUNABLES, *plan.SETTINGS, accounts.SETTING)
    return online | {name: os.environ[name] for name in names if name in os.environ}
