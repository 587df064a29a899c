"""No request is sent to a cloud before its record is written."""

from __future__ import annotations

import ast
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import UUID, uuid4

import httpx
import httpx2
import pytest

import inference.backends
from inference.protocol import BackendConfig
from inference.remote import egress
from inference.remote.client import httpx2_client, httpx_client, transport_for
from inference.remote.egress import EgressTransport, on_behalf_of, probing, sending

LIBRARIES = [httpx, httpx2]
JOB = uuid4()


class Journal:
    """Records and sent requests, in order."""

    def __init__(self, library: ModuleType) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.error: Exception | None = None
        transport = EgressTransport(
            library, "openai", self.record, library.MockTransport(self.send)
        )
        self.client = library.Client(transport=transport, trust_env=False)
        self._library = library

    def record(self, backend: str, size: int, jobs: Sequence[UUID]) -> None:
        if self.error is not None:
            raise self.error
        self.events.append(("record", backend, size, tuple(jobs)))

    def send(self, request: Any) -> Any:
        self.events.append(("sent", request.url.path, len(request.content), sending()))
        if request.url.path == "/redirect":
            return self._library.Response(307, headers={"Location": "/elsewhere"})
        return self._library.Response(200)


@pytest.fixture(params=LIBRARIES)
def library(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture
def journal(library: ModuleType) -> Journal:
    return Journal(library)


def test_record_precedes_request_and_has_its_size(journal: Journal) -> None:
    with on_behalf_of([JOB]):
        journal.client.post("https://cloud.example/v1/chat", json={"prompt": "x" * 1000})
    (_, backend, size, jobs), sent = journal.events
    assert (backend, jobs) == ("openai", (JOB,))
    assert sent[:2] == ("sent", "/v1/chat")
    assert sent[2] < size < sent[2] + 1000
    assert sent[3] is True
    assert sending() is False


def test_request_without_job_is_not_sent(journal: Journal, library: ModuleType) -> None:
    with pytest.raises(library.ConnectError):
        journal.client.get("https://cloud.example/")
    with on_behalf_of([JOB]):
        pass
    with pytest.raises(library.ConnectError):
        journal.client.get("https://cloud.example/")
    assert journal.events == []


def test_request_without_record_is_not_sent(journal: Journal, library: ModuleType) -> None:
    journal.error = RuntimeError("connection lost: SECRET")
    with on_behalf_of([JOB]), pytest.raises(library.ConnectError) as caught:
        journal.client.get("https://cloud.example/")
    assert journal.events == []
    assert "SECRET" not in str(caught.value)


def test_redirect_has_its_own_record(journal: Journal) -> None:
    with on_behalf_of([JOB]):
        journal.client.post("https://cloud.example/redirect", content=b"x", follow_redirects=True)
    assert [event[0] for event in journal.events] == ["record", "sent", "record", "sent"]


def test_jobs_are_named_for_one_thread(journal: Journal, library: ModuleType) -> None:
    caught: list[Exception] = []

    def call() -> None:
        try:
            journal.client.get("https://cloud.example/")
        except library.ConnectError as error:
            caught.append(error)

    with on_behalf_of([JOB]):
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert caught
    assert journal.events == []


def test_inner_block_names_the_jobs(journal: Journal) -> None:
    other = uuid4()
    with on_behalf_of([JOB, other]):
        with on_behalf_of([other]):
            journal.client.get("https://cloud.example/")
        journal.client.get("https://cloud.example/")
    assert [event[3] for event in journal.events if event[0] == "record"] == [
        (other,), (JOB, other),
    ]  # fmt: skip


def test_process_without_recorder_calls_no_cloud(library: ModuleType) -> None:
    transport = transport_for(BackendConfig("openai", "cloud"), library, library.Limits())
    with (
        on_behalf_of([JOB]), library.Client(transport=transport, trust_env=False) as client,
        pytest.raises(library.ConnectError, match="no request to a cloud is allowed here"),
    ):  # fmt: skip
        client.get("https://cloud.example/")


def test_probe_without_content_needs_no_record(library: ModuleType) -> None:
    def client(record: Any) -> Any:
        inner = library.MockTransport(lambda _: library.Response(200))
        return library.Client(transport=EgressTransport(library, "openai", record, inner))

    with probing(), client(None) as outside:
        assert outside.get("https://cloud.example/v1/models").status_code == 200
        for method, url, body in (
            ("GET", "/v1/models?q=dear+diary", b""), ("GET", "/v1/models", b"dear diary"),
            ("POST", "/v1/models", b""),
        ):  # fmt: skip
            with pytest.raises(library.ConnectError):
                outside.request(method, f"https://cloud.example{url}", content=body)
    with probing(), client(lambda *_: None) as worker, pytest.raises(library.ConnectError):
        worker.get("https://cloud.example/v1/models")


def test_local_backend_connects_to_local_servers_only(library: ModuleType) -> None:
    transport = transport_for(BackendConfig("llama", "local"), library, library.Limits())
    assert not isinstance(transport, egress.EgressTransport)
    with (
        library.Client(transport=transport, trust_env=False) as client,
        pytest.raises(library.ConnectError, match="not a local address"),
    ):
        client.get("http://93.184.216.34/")


@pytest.mark.parametrize("locality", ["local", "cloud"])
def test_clients_use_the_transport_of_their_locality_only(locality: Any) -> None:
    config = BackendConfig("cloud", locality, url="https://cloud.example/v1")
    for client in (httpx2_client(config), httpx_client(config, {})):
        assert isinstance(client._transport, EgressTransport) == (locality == "cloud")
        assert client._mounts == {}
        assert not client.trust_env
        client.close()


def test_proxy_of_environment_is_used_for_clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "near.example")
    for host, pool in (("cloud", "HTTPProxy"), ("near", "ConnectionPool")):
        config = BackendConfig("cloud", "cloud", url=f"https://{host}.example/v1")
        with httpx2_client(config) as client:
            assert type(client._transport._inner._pool).__name__ == pool  # type: ignore[attr-defined]


OTHER_NETWORK_ACCESS = {"HTTPTransport", "Client", "create_connection", "urlopen", "getoutput"}


def other_network_access(source: str) -> list[str]:
    """Network access in a backend's source other than by `inference.remote.client`."""
    result = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names) if {n.name.partition(".")[0] for n in names} & {
                "requests",
                "urllib3",
                "aiohttp",
                "socket",
            }:
                result.append(ast.unparse(node))
            case ast.ImportFrom(module="urllib.request" | "http.client" | "socket" | "requests"):
                result.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr="OpenAI" | "Anthropic"), keywords=keywords):
                clients = [ast.unparse(k.value) for k in keywords if k.arg == "http_client"]
                if clients != ["httpx2_client(config)"]:
                    result.append(ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr=name)) if (
                name in OTHER_NETWORK_ACCESS or name.startswith("Async")
            ):
                result.append(ast.unparse(node))
    return result  # fmt: skip


def test_backends_use_no_other_network_access() -> None:
    folder = Path(inference.backends.__file__).parent
    assert {
        p.name: f for p in folder.glob("*.py") if (f := other_network_access(p.read_text()))
    } == {}


@pytest.mark.parametrize(
    "source",
    ["import requests", "httpx2.Client()", "httpx.HTTPTransport()", "openai.AsyncOpenAI()",
     "openai.OpenAI(max_retries=0)", "anthropic.Anthropic(http_client=other())",
     "from urllib.request import urlopen", "ollama.Client(host)"],
)  # fmt: skip
def test_other_network_access_is_detected(source: str) -> None:
    assert other_network_access(source)
    assert not other_network_access("openai.OpenAI(http_client=httpx2_client(config))")
