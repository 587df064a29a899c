"""The FastAPI server in samples/, started as documented, behind the real backend."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from inference.backends import openai_http
from inference.backends.openai_http import OpenAIBackend
from inference.device.model_files import locate
from inference.errors import TooLong
from tests.waiting import eventually
from tests.wire.factories import config, entry
from workers.home import CHECKOUT, Home
from workers.stack.supervisor import http_ready


@pytest.fixture(scope="module")
def backend(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAIBackend]:
    """The packaged model embeds; as a cross-encoder it has a head of random weights."""
    model = str(locate(None).path)
    home = Home(tmp_path_factory.mktemp("own"))
    home.create()
    port = home.settle_port("own")
    environment = os.environ | {"EMBEDDING_MODEL": model, "RERANK_MODEL": model}
    log = home.logs / "own.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "--app-dir", "samples", "model_server:app",
             "--host", "127.0.0.1", "--port", str(port)],
            cwd=CHECKOUT, env=environment | {"HF_HUB_OFFLINE": "1"},
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}/v1"
    try:
        responds = http_ready(lambda: f"{url}/models")

        def is_ready() -> bool:
            assert process.poll() is None, log.read_text()
            return responds()

        eventually(is_ready, within=240)  # the server loads torch and two models
        yield openai_http.connect(config(url, locality="local", key=None))
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.slow
def test_sample_server_embeds_reranks_and_does_not_truncate(backend: OpenAIBackend) -> None:
    model = backend.load(entry(kinds=["embedding", "rerank"], dimension=384))
    query, far, near = model.embed(["lying awake", "the price of coal", "no sleep at night"])
    assert np.linalg.norm(query) == pytest.approx(1, abs=1e-5)
    assert query @ near > query @ far
    scores = model.rerank("frost", ["it is freezing", "a hot desert"])
    assert len(set(scores)) == 2
    assert all(np.isfinite(scores))
    for call in (lambda: model.embed(["word " * 600]), lambda: model.rerank("a", ["word " * 600])):
        with pytest.raises(TooLong):
            call()
    assert backend.probe().models == {"embedding", "rerank"}
