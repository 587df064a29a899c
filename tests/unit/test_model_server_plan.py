"""Plan of a stack's model servers: llama.cpp servers, Ollama, and the backends of each worker."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from inference.remote.local_network import is_own, networks
from tests.ollama_fake import VERSION, FakeOllama
from workers.home import Home
from workers.model_servers import plan
from workers.model_servers.plan import ModelServers, ollama_version
from workers.setting_names import parse_pairs
from workers.stack.embedded_stack import worker_lanes, worker_name

INTERACTIVE, BULK = ["private.interactive.gpu"], ["shareable.bulk.gpu"]
CLOUD = ["shareable.interactive.cloud", "shareable.bulk.cloud"]
CLOSED = "http://127.0.0.1:9"
"""An address at which no server listens."""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path)
    home.create()
    return home


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama(None, {}) as running:
        yield running


def servers(
    home: Home, *, accelerator: bool = False, only: tuple[str, ...] = (), **settings: str
) -> ModelServers:
    workers = {worker_name(lanes): lanes for lanes in worker_lanes(accelerator)}
    variables = {"VESTRY_OLLAMA": "off"} | {f"VESTRY_{n}": value for n, value in settings.items()}
    return ModelServers(home, variables, workers, lambda name: not only or name in only)


def pairs(plan: ModelServers, lanes: list[str], name: str = "BACKENDS") -> Mapping[str, str]:
    """A worker's VESTRY_BACKENDS or VESTRY_BACKEND_KEYS."""
    return parse_pairs(plan.environment(lanes).get(f"VESTRY_{name}", ""))


def test_cpu_has_a_server_for_each_latency(home: Home) -> None:
    plan = servers(home)
    assert [server.name for server in plan.llama] == ["llama-interactive", "llama-bulk"]
    first, second = plan.llama
    assert first.port != second.port
    assert pairs(plan, INTERACTIVE) == {"llama": f"{first.address}/v1"}
    assert pairs(plan, BULK) == {"llama": f"{second.address}/v1"}
    (file,) = pairs(plan, BULK, "BACKEND_KEYS").values()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600  # noqa: PTH116
    environment = plan.llama_environment(first)
    assert environment["VESTRY_LLAMA_CONTEXT"] == "2048"
    assert environment["VESTRY_LLAMA_PORT"] == str(first.port)
    assert [server.port for server in servers(home).llama] == [first.port, second.port]


def test_accelerator_has_one_server(home: Home) -> None:
    plan = servers(home, accelerator=True)
    (server,) = plan.llama
    assert server.name == "llama"
    for lanes in worker_lanes(accelerator=True)[:2]:
        assert pairs(plan, list(lanes)) == {"llama": f"{server.address}/v1"}


def test_missing_runtime_leaves_llama_out_with_a_note(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.llama_server.RUNTIME", "not_installed_here")
    plan = servers(home)
    assert plan.llama == ()
    assert pairs(plan, INTERACTIVE) == {}
    assert any("not started" in note and "not_installed_here" in note for note in plan.notes)


def test_part_of_a_stack_has_the_servers_of_its_workers(home: Home) -> None:
    assert servers(home, only=("dispatcher",)).notes == []
    plan = servers(home, only=("llama-bulk", "private-bulk-gpu"))
    assert [server.name for server in plan.llama] == ["llama-bulk"]
    assert pairs(plan, INTERACTIVE) == {}
    assert servers(home, LLAMA="off").llama == ()


def test_urls_and_keys_of_clouds_go_only_to_cloud_workers(home: Home) -> None:
    plan = servers(
        home,
        BACKENDS="openai, anthropic=https://proxy.example llama-cpp=http://127.0.0.1:8080/v1",
        BACKEND_KEYS="openai=/keys/openai anthropic=/keys/anthropic llama-cpp=/keys/own",
    )
    assert plan.clouds == ("openai", "anthropic")
    names = {"openai", "anthropic", "llama-cpp", "llama"}
    urls = {name: url for name, url in pairs(plan, CLOUD).items() if url}
    assert urls == {"anthropic": "https://proxy.example"}
    assert pairs(plan, CLOUD).keys() == pairs(plan, BULK).keys() == names
    keys = pairs(plan, CLOUD, "BACKEND_KEYS")
    assert keys == {"openai": "/keys/openai", "anthropic": "/keys/anthropic"}
    assert pairs(plan, INTERACTIVE).keys() == {"llama-cpp", "llama"}
    for lanes in (INTERACTIVE, BULK):
        assert pairs(plan, lanes, "BACKEND_KEYS").keys() == {"llama-cpp", "llama"}
    assert plan.environment(["private.bulk.cpu"]) == {}
    assert parse_pairs(plan.overview()["VESTRY_BACKENDS"]).keys() == names


def test_private_workers_use_only_servers_of_local_networks(home: Home) -> None:
    external = {"BACKENDS": "llama-cpp=http://192.0.2.7:8080/v1", "LLAMA": "off"}
    plan = servers(home, **external)
    assert pairs(plan, INTERACTIVE) == {}
    assert pairs(plan, BULK).keys() == {"llama-cpp"}
    local = servers(home, LOCAL_NETWORKS="192.0.2.0/24", **external)
    assert pairs(local, INTERACTIVE).keys() == {"llama-cpp"}


def test_host_is_local_only_if_all_of_its_addresses_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://127.0.0.1:1", "http://[::1]:1/v1", "http://127.9.9.9"):
        assert is_own(url)
    for url in ("http://192.0.2.1", "http://no-such-host.invalid", "http://", "nonsense", ""):
        assert not is_own(url)
    local = networks("10.0.0.0/8 fd00::/8,192.0.2.0/24")
    assert is_own("http://10.4.5.6:80/v1", local)
    assert not is_own("http://172.16.0.1", local)
    with pytest.raises(ValueError, match="nonsense"):
        networks("10.0.0.0/8, nonsense")
    addresses = [(2, 1, 6, "", ("127.0.0.1", 0)), (2, 1, 6, "", ("192.0.2.9", 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: addresses)
    assert not is_own("http://half.example")


def test_discovered_ollama_is_used_with_a_note(
    home: Home, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "DEFAULT_OLLAMA_URL", ollama.url)
    monkeypatch.setattr(plan, "ollama_version", partial(ollama_version, timeout_s=10))
    monkeypatch.setenv("http_proxy", CLOSED)
    assert ollama_version(ollama.url, timeout_s=10) == VERSION
    discovered = servers(home, OLLAMA="auto")
    for lanes in (INTERACTIVE, BULK):
        assert pairs(discovered, lanes)["ollama"] == ollama.url
    assert any(VERSION in note for note in discovered.notes)
    assert not any(pairs(discovered, CLOUD).values())
    assert discovered.document()["backends"]["ollama"] == ollama.url
    assert "ollama" not in pairs(servers(home, OLLAMA="off"), INTERACTIVE)


def test_unreachable_ollama_is_used_only_if_it_was_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "DEFAULT_OLLAMA_URL", CLOSED)
    assert "ollama" not in pairs(servers(home, OLLAMA="auto"), INTERACTIVE)
    named = servers(home, OLLAMA=CLOSED)
    assert pairs(named, INTERACTIVE)["ollama"] == CLOSED
    assert any("does not answer yet" in note for note in named.notes)
    external = servers(home, OLLAMA="http://192.0.2.7:11434", LLAMA="off")
    assert pairs(external, INTERACTIVE) == {}
    assert pairs(external, BULK) == {"ollama": "http://192.0.2.7:11434"}
    assert any("private workers do not use" in note for note in external.notes)


def test_configured_servers_take_precedence_over_discovered_ones(home: Home) -> None:
    plan = servers(
        home, OLLAMA="auto", BACKENDS="ollama=http://127.0.0.1:7 llama=http://127.0.0.1:8"
    )
    assert pairs(plan, INTERACTIVE) == {
        "ollama": "http://127.0.0.1:7",
        "llama": "http://127.0.0.1:8",
    }
    assert (plan.llama, plan.notes) == ((), [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"BACKENDS": "no-such"}, "there is no backend no-such"),
        ({"BACKEND_KEYS": "no-such=x"}, "there is no backend no-such"),
        ({"OLLAMA": "maybe"}, "VESTRY_OLLAMA must be auto, off or a URL"),
        ({"LLAMA": "maybe"}, "VESTRY_LLAMA must be auto or off"),
        ({"LLAMA_ALIAS": "gpt-4o-mini"}, "must name a model of the backend llama"),
        ({"CATALOGUE": "/no/such/file"}, "cannot be read"),
        ({"LOCAL_NETWORKS": "here"}, "here"),
    ],
)
def test_invalid_setting_is_named(home: Home, settings: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        servers(home, **settings)
