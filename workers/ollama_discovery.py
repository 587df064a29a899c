"""Looks for an Ollama that runs already."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Final

USUAL: Final = "http://127.0.0.1:11434"
"""Where it listens unless it was told otherwise."""
PATIENCE_S: Final = 0.5


def ollama_version(url: str, timeout_s: float = PATIENCE_S) -> str | None:
    """The version of the Ollama at a URL; None where none answers.

    Args:
        url: its base URL.
        timeout_s: for its answer.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url.rstrip('/')}/api/version", timeout=timeout_s) as answer:
            version = json.loads(answer.read(4096))["version"]
    except (OSError, ValueError, LookupError, TypeError):  # urllib's errors are of these, too
        return None
    return str(version)
