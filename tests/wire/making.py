"""What the tests of backends on the wire have in common."""

from __future__ import annotations

from typing import Any

from inference.catalogue.schema import ModelEntry
from inference.protocol import BackendConfig, GenerationRequest, Sampling
from vestry.jobs.generation import Message

CLOUD_KEY = "a cloud's key"
NEEDLE = "quartzite marmalade"
"""In every prompt, and in no error."""
LABELS = {
    "type": "object",
    "properties": {"label": {"enum": ["psalm", "law"]}},
    "required": ["label"],
    "additionalProperties": False,
}


def config(url: str | None, **given: Any) -> BackendConfig:
    told = {"name": "there", "locality": "cloud", "key": CLOUD_KEY, "timeout_s": 30.0,
            "egress": lambda *_: None}  # fmt: skip
    return BackendConfig(**(told | {"url": url} | given))


def entry(**given: Any) -> ModelEntry:
    told = {"name": "SmolLM2-135M-Instruct", "backend": "there", "kinds": "generation",
            "context": 1024, "get": "ask for it"}  # fmt: skip
    return ModelEntry(**(told | given))


def ask(text: str = "Name a colour.", **given: Any) -> GenerationRequest:
    messages = [Message("system", "Be brief."), Message("user", f"{NEEDLE}: {text}")]
    told = {"max_tokens": 12, "sampling": Sampling(temperature=0.0)}
    return GenerationRequest(messages, **(told | given))
