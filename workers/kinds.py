"""Builds the handlers a worker serves, from its settings: the one place where models are loaded."""

from __future__ import annotations

import os
from collections.abc import Mapping

import psycopg

from tasks.protocol import Handler
from workers.settings import Settings


def offline() -> None:
    """Keep model libraries from asking a hub for anything."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
