"""Local backends are called only at local addresses, also if a name resolves to another one."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import httpx
import httpx2
import pytest

from inference.remote.local_network import (
    NotLocal,
    check_url,
    guarded_transport,
    is_local,
    networks,
)

LIBRARIES = [httpx, httpx2]


class Server(http.server.ThreadingHTTPServer):
    """Responds with OK or a redirect, and records the paths."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.paths: list[str] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(302 if self.path == "/redirect" else 200)
        self.send_header("Location", "http://cloud.example/secret")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def resolve_names_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Resolve every host name to these addresses."""
    real = socket.getaddrinfo

    def lookup(host: str, port: int, *args: Any, **kwargs: Any) -> Any:
        if host[0].isdigit() or ":" in host:
            return real(host, port, *args, **kwargs)
        return [entry for a in addresses for entry in real(a, port, *args, **kwargs)]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1", True), ("127.8.9.1", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("10.20.3.4", True), ("::ffff:10.20.3.4", True), ("fd00:1::5", True), ("fd00:1::5%eth0", True),
        ("10.21.0.1", False), ("8.8.8.8", False), ("0.0.0.0", False),  # noqa: S104 ("192.168.1.1", False),
        ("2001:4860:4860::8888", False), ("::ffff:8.8.8.8", False), ("::", False), ("home", False),
        ("fe80::1%lo", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_and_listed_networks_are_local(address: str, local: bool) -> None:
    assert is_local(address, networks("10.20.0.0/16, fd00:1::/32")) is local


@pytest.mark.parametrize("text", ["0.0.0.0/0", "::/0", "0.0.0.0/1", "home", "10.0.0.1/8", "1.2.3"])
def test_invalid_or_too_wide_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="VESTRY_LOCAL_NETWORKS"):
        networks(text)


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8/v1", "https://cloud.example/v1", "http://127.0.0.1@cloud.example/", "ftp://127.0.0.1",
        "127.0.0.1:80", "http://", "http://[::1", "http://127.0.0.1:99999", "", "file:///etc/passwd",
        "http://cloud.example\\@127.0.0.1/", "http://key@127.0.0.1/", "http://0.0.0.0/",
    ],
)  # fmt: skip
def test_url_of_another_network_is_refused(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    resolve_names_to(monkeypatch, "93.184.216.34")
    with pytest.raises(NotLocal):
        check_url(url)


@pytest.mark.parametrize("url", ["http://localhost:8080/v1", "http://127.1/", "https://[::1]:1/"])
def test_loopback_url_is_accepted(url: str) -> None:
    check_url(url)


def test_host_with_one_foreign_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_names_to(monkeypatch, "127.0.0.1", "93.184.216.34")
    with pytest.raises(NotLocal, match=r"93\.184\.216\.34"):
        check_url("http://models.lan/")


@pytest.mark.parametrize("library", LIBRARIES)
def test_host_name_is_checked_for_every_connection(
    library: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://models.lan:{server.port}"
    resolve_names_to(monkeypatch, "127.0.0.1")
    check_url(url)
    with library.Client(transport=guarded_transport(library), trust_env=False) as client:
        assert client.get(f"{url}/one").status_code == 200
    # The name resolves to a foreign address too. (The server is reachable, so the client refuses.)
    resolve_names_to(monkeypatch, "127.0.0.1", "93.184.216.34")
    with (
        library.Client(transport=guarded_transport(library), trust_env=False) as client,
        pytest.raises(library.ConnectError, match="not a local address"),
    ):
        client.get(f"{url}/two")
    assert server.paths == ["/one"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_connection_is_made_to_the_checked_address(
    library: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no second lookup, which could have another result."""
    resolve_names_to(monkeypatch, "127.0.0.1")
    lookups = [socket.getaddrinfo]

    def once(*args: Any, **kwargs: Any) -> Any:
        if args[0] == "models.lan":
            return lookups.pop()(*args, **kwargs)
        return socket.getaddrinfo.__wrapped__(*args, **kwargs)  # type: ignore[attr-defined]

    once.__wrapped__ = lookups[0]  # type: ignore[attr-defined]
    monkeypatch.setattr(socket, "getaddrinfo", once)
    with library.Client(transport=guarded_transport(library), trust_env=False) as client:
        assert client.get(f"http://models.lan:{server.port}/").status_code == 200


@pytest.mark.parametrize("library", LIBRARIES)
def test_redirects_and_proxies_do_not_bypass_the_check(
    library: ModuleType, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://93.184.216.34:3128")
    resolve_names_to(monkeypatch, "93.184.216.34")
    with library.Client(transport=guarded_transport(library), trust_env=False) as client:
        assert client.get(f"http://127.0.0.1:{server.port}/").status_code == 200
        with pytest.raises(library.ConnectError):
            client.get(f"http://127.0.0.1:{server.port}/redirect", follow_redirects=True)
    assert server.paths == ["/", "/redirect"]


@pytest.mark.parametrize("library", LIBRARIES)
def test_unreachable_server_is_a_connect_error(library: ModuleType) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        with (
            library.Client(transport=guarded_transport(library), trust_env=False) as client,
            pytest.raises(library.ConnectError),
        ):
            client.get(f"http://127.0.0.1:{port}/")
