"""Configurations, catalogue entries, requests and the expected error for tests of backends."""

from __future__ import annotations

from typing import Any

import pytest

from inference.catalogue.schema import ModelEntry
from inference.errors import InferenceError
from inference.protocol import BackendConfig, GenerationRequest, Sampling
from vestry.jobs.generation import Message

CLOUD_KEY = "a cloud's key"
NEEDLE = "quartzite marmalade"
"""In every prompt; must be in no error."""
LABELS = {
    "type": "object",
    "properties": {"label": {"enum": ["psalm", "law"]}},
    "required": ["label"],
    "additionalProperties": False,
}


def config(url: str | None, **fields: Any) -> BackendConfig:
    defaults = {"name": "remote", "locality": "cloud", "key": CLOUD_KEY, "timeout_s": 30.0,
                "egress": lambda *_: None}  # fmt: skip
    return BackendConfig(**(defaults | {"url": url} | fields))


def entry(**fields: Any) -> ModelEntry:
    defaults = {"name": "SmolLM2-135M-Instruct", "backend": "remote", "kinds": "generation",
                "context": 1024, "get": "install it"}  # fmt: skip
    return ModelEntry(**(defaults | fields))


def prompt(text: str = "Name a colour.", **fields: Any) -> GenerationRequest:
    messages = [Message("system", "Be brief."), Message("user", f"{NEEDLE}: {text}")]
    defaults = {"max_tokens": 12, "sampling": Sampling(temperature=0.0)}
    return GenerationRequest(messages, **(defaults | fields))


def assert_raises(
    backend: Any, kind: type[InferenceError], model: ModelEntry | None = None, **request: Any
) -> InferenceError:
    """Generate and expect an error of exactly this class, without content."""
    with pytest.raises(kind) as caught:
        backend.load(model or entry()).generate(prompt(**request))
    assert type(caught.value) is kind
    assert NEEDLE not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value
