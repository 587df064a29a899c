"""What the SDKs would take from the environment, tell of this machine, log, or carry to other hosts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from inference.backends import anthropic_http, ollama_http, openai_http
from inference.errors import InferenceError, ModelMissing
from inference.protocol import Backend, BackendConfig
from inference.remote.client import SENT, httpx2_client, httpx_client
from tests.faultserver import FaultServer, redirect, status
from tests.llama import Llama
from tests.ollama_fake import FakeOllama
from tests.wire.making import CLOUD_KEY, NEEDLE, ask, config, entry

CONNECT: dict[str, tuple[Callable[[BackendConfig], Backend], str]] = {
    "openai": (openai_http.connect, "/v1"),
    "anthropic": (anthropic_http.connect, ""),
    "ollama": (ollama_http.connect, ""),
}
NOWHERE = "http://127.0.0.1:9"
PLANTED = {
    "OPENAI_API_KEY": "planted",
    "OPENAI_ADMIN_KEY": "planted",
    "OPENAI_ORG_ID": "planted",
    "OPENAI_PROJECT_ID": "planted",
    "OPENAI_BASE_URL": NOWHERE,
    "OPENAI_CUSTOM_HEADERS": "x-planted: planted",
    "ANTHROPIC_API_KEY": "planted",
    "ANTHROPIC_AUTH_TOKEN": "planted",
    "ANTHROPIC_BASE_URL": NOWHERE,
    "ANTHROPIC_CUSTOM_HEADERS": "x-planted: planted",
    "ANTHROPIC_PROFILE": "planted",
    "OLLAMA_HOST": NOWHERE,
    "OLLAMA_API_KEY": "planted",
    "HTTP_PROXY": NOWHERE,
    "http_proxy": NOWHERE,
    "ALL_PROXY": NOWHERE,
}
"""The proxies answer nobody, as the hosts do: whoever takes one of them gets no answer."""


@pytest.fixture(params=CONNECT)
def made(
    request: pytest.FixtureRequest, llama: Llama, faulty: FaultServer
) -> Iterator[tuple[Callable[..., Backend], FaultServer]]:
    """Makes a backend, and the server that it calls."""
    connect, path = CONNECT[request.param]
    if request.param != "ollama":
        yield lambda **given: connect(config(f"{faulty.url}{path}", **given)), faulty
        return
    models = {"SmolLM2-135M-Instruct": {}}
    with FakeOllama(llama, models) as ollama, FaultServer(ollama.url) as server:
        yield lambda **given: connect(config(server.url, **given)), server


def test_nothing_of_the_environment_reaches_a_local_server(
    made: tuple[Callable[..., Backend], FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, server = made
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for key in (CLOUD_KEY, None):
        server.offers.clear()
        server.key = key
        backend = make(locality="local", key=key)
        loaded: Any = backend.load(entry())
        assert loaded.generate(ask(max_tokens=2)).text
        assert backend.probe().reachable
        for offer in server.offers:
            assert offer.headers.keys() <= SENT
            assert "planted" not in " ".join(offer.headers.values())
            assert NOWHERE.removeprefix("http://") not in offer.headers["host"]
        backend.close()
    server.key = CLOUD_KEY


def test_no_library_logs_a_text_or_a_key(
    made: tuple[Callable[..., Backend], FaultServer],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, server = made
    with caplog.at_level(logging.DEBUG):
        loaded: Any = make(locality="local").load(entry())
        loaded.generate(ask(max_tokens=2))
        server.fault = status(400, {"error": {"message": NEEDLE}})
        with pytest.raises(InferenceError) as caught:
            loaded.generate(ask())
        assert NEEDLE not in str(caught.value)
    written = caplog.text + "".join(capfd.readouterr())
    assert NEEDLE not in written
    assert CLOUD_KEY not in written


def test_a_redirect_carries_nothing_to_another_server(
    made: tuple[Callable[..., Backend], FaultServer],
) -> None:
    make, server = made
    with FaultServer() as other:
        server.fault = redirect(f"{other.url}/v1/chat/completions")
        loaded: Any = make(locality="cloud").load(entry())
        with pytest.raises(InferenceError, match="another address"):
            loaded.generate(ask())
        assert other.offers == []


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:8080", "file:///etc/passwd", "http://"])
def test_a_backend_without_a_usable_url_says_how_to_name_one(url: str | None) -> None:
    for connect, _ in CONNECT.values():
        with pytest.raises(ModelMissing, match="VESTRY_BACKENDS=there=URL"):
            connect(config(url))


def test_a_client_goes_to_its_own_host_alone() -> None:
    with FaultServer() as other:
        for client in (
            httpx2_client(config("http://localhost:1")),
            httpx_client(config("http://localhost:1"), {}),
        ):
            with pytest.raises(Exception, match="another host"):
                client.get(f"{other.url}/v1/models")
            client.close()
        assert other.offers == []
