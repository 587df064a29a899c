"""SDK clients ignore the environment, log no content and call one host only."""

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
from tests.llama_server import Llama
from tests.ollama_fake import FakeOllama
from tests.wire.factories import CLOUD_KEY, NEEDLE, config, entry, prompt

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
"""Proxies and hosts that do not respond: a call through one of them fails."""


@pytest.fixture(params=CONNECT)
def backend_factory(
    request: pytest.FixtureRequest, llama: Llama, faulty: FaultServer
) -> Iterator[tuple[Callable[..., Backend], FaultServer]]:
    """A factory of backends, and the server that they call."""
    connect, path = CONNECT[request.param]
    if request.param != "ollama":
        yield lambda **fields: connect(config(f"{faulty.url}{path}", **fields)), faulty
        return
    models = {"SmolLM2-135M-Instruct": {}}
    with FakeOllama(llama, models) as ollama, FaultServer(ollama.url) as server:
        yield lambda **fields: connect(config(server.url, **fields)), server


def test_environment_does_not_reach_a_local_server(
    backend_factory: tuple[Callable[..., Backend], FaultServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, server = backend_factory
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    for key in (CLOUD_KEY, None):
        server.requests.clear()
        server.key = key
        backend = make(locality="local", key=key)
        loaded: Any = backend.load(entry())
        assert loaded.generate(prompt(max_tokens=2)).text
        assert backend.probe().reachable
        for request in server.requests:
            assert request.headers.keys() <= SENT
            assert "planted" not in " ".join(request.headers.values())
            assert NOWHERE.removeprefix("http://") not in request.headers["host"]
        backend.close()
    server.key = CLOUD_KEY


def test_libraries_log_no_text_and_no_key(
    backend_factory: tuple[Callable[..., Backend], FaultServer],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    make, server = backend_factory
    with caplog.at_level(logging.DEBUG):
        loaded: Any = make(locality="local").load(entry())
        loaded.generate(prompt(max_tokens=2))
        server.fault = status(400, {"error": {"message": NEEDLE}})
        with pytest.raises(InferenceError) as caught:
            loaded.generate(prompt())
        assert NEEDLE not in str(caught.value)
    output = caplog.text + "".join(capfd.readouterr())
    assert NEEDLE not in output
    assert CLOUD_KEY not in output


def test_redirect_to_another_server_is_not_followed(
    backend_factory: tuple[Callable[..., Backend], FaultServer],
) -> None:
    make, server = backend_factory
    with FaultServer() as other:
        server.fault = redirect(f"{other.url}/v1/chat/completions")
        loaded: Any = make(locality="cloud").load(entry())
        with pytest.raises(InferenceError, match="another address"):
            loaded.generate(prompt())
        assert other.requests == []


@pytest.mark.parametrize("url", [None, "", "127.0.0.1:8080", "file:///etc/passwd", "http://"])
def test_backend_without_valid_url_names_the_setting(url: str | None) -> None:
    for connect, _ in CONNECT.values():
        with pytest.raises(ModelMissing, match="VESTRY_BACKENDS=remote=URL"):
            connect(config(url))


def test_client_refuses_other_hosts() -> None:
    with FaultServer() as other:
        for client in (
            httpx2_client(config("http://localhost:1")),
            httpx_client(config("http://localhost:1"), {}),
        ):
            with pytest.raises(Exception, match="another host"):
                client.get(f"{other.url}/v1/models")
            client.close()
        assert other.requests == []
