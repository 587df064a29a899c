"""Which model servers a stack has, and which of them each worker is told of."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import pytest

from inference.remote.local_network import is_own, networks
from tests.ollama_fake import VERSION, FakeOllama
from workers.environment import parse_pairs
from workers.home import Home
from workers.model_servers import plan
from workers.model_servers.plan import ModelServers, ollama_version
from workers.stack.processes import worker_lanes, worker_name

INTERACTIVE, BULK = ["private.interactive.gpu"], ["shareable.bulk.gpu"]
CLOUD = ["shareable.interactive.cloud", "shareable.bulk.cloud"]
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path)
    made.create()
    return made


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama(None, {}) as running:
        yield running


def servers(
    home: Home, *, accelerator: bool = False, only: tuple[str, ...] = (), **settings: str
) -> ModelServers:
    workers = {worker_name(lanes): lanes for lanes in worker_lanes(accelerator)}
    given = {"VESTRY_OLLAMA": "off"} | {f"VESTRY_{name}": told for name, told in settings.items()}
    return ModelServers(home, given, workers, lambda name: not only or name in only)


def told(made: ModelServers, lanes: list[str], what: str = "BACKENDS") -> Mapping[str, str]:
    return parse_pairs(made.environment(lanes).get(f"VESTRY_{what}", ""))


def test_on_a_processor_those_who_wait_have_a_server_of_their_own(home: Home) -> None:
    made = servers(home)
    assert [server.name for server in made.llama] == ["llama-interactive", "llama-bulk"]
    first, second = made.llama
    assert first.port != second.port
    assert told(made, INTERACTIVE) == {"llama": f"{first.address}/v1"}
    assert told(made, BULK) == {"llama": f"{second.address}/v1"}
    (file,) = told(made, BULK, "BACKEND_KEYS").values()
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600  # noqa: PTH116
    environment = made.llama_environment(first)
    assert environment["VESTRY_LLAMA_CONTEXT"] == "2048"
    assert environment["VESTRY_LLAMA_PORT"] == str(first.port)
    assert [server.port for server in servers(home).llama] == [first.port, second.port]


def test_on_an_accelerator_one_server_is_enough(home: Home) -> None:
    made = servers(home, accelerator=True)
    (server,) = made.llama
    assert server.name == "llama"
    for lanes in worker_lanes(accelerator=True)[:2]:
        assert told(made, list(lanes)) == {"llama": f"{server.address}/v1"}


def test_what_is_missing_is_left_out_and_said(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.llama_server.RUNTIME", "not_installed_here")
    made = servers(home)
    assert made.llama == ()
    assert told(made, INTERACTIVE) == {}
    assert any("left out" in note and "not_installed_here" in note for note in made.notes)


def test_a_part_of_the_stack_has_its_part_of_the_servers(home: Home) -> None:
    assert servers(home, only=("dispatcher",)).notes == []
    made = servers(home, only=("llama-bulk", "private-bulk-gpu"))
    assert [server.name for server in made.llama] == ["llama-bulk"]
    assert told(made, INTERACTIVE) == {}
    assert servers(home, LLAMA="off").llama == ()


def test_clouds_and_their_keys_are_told_to_cloud_workers_alone(home: Home) -> None:
    made = servers(
        home,
        BACKENDS="openai, anthropic=https://proxy.example llama-cpp=http://127.0.0.1:8080/v1",
        BACKEND_KEYS="openai=/keys/openai anthropic=/keys/anthropic llama-cpp=/keys/own",
    )
    assert made.clouds == ("openai", "anthropic")
    everything = {"openai", "anthropic", "llama-cpp", "llama"}
    addresses = {name: url for name, url in told(made, CLOUD).items() if url}
    assert addresses == {"anthropic": "https://proxy.example"}
    assert told(made, CLOUD).keys() == told(made, BULK).keys() == everything
    keys = told(made, CLOUD, "BACKEND_KEYS")
    assert keys == {"openai": "/keys/openai", "anthropic": "/keys/anthropic"}
    assert told(made, INTERACTIVE).keys() == {"llama-cpp", "llama"}
    for lanes in (INTERACTIVE, BULK):
        assert told(made, lanes, "BACKEND_KEYS").keys() == {"llama-cpp", "llama"}
    assert made.environment(["private.bulk.cpu"]) == {}
    assert parse_pairs(made.overview()["VESTRY_BACKENDS"]).keys() == everything


def test_a_server_that_is_not_ours_is_no_business_of_private_workers(home: Home) -> None:
    far = {"BACKENDS": "llama-cpp=http://192.0.2.7:8080/v1", "LLAMA": "off"}
    made = servers(home, **far)
    assert told(made, INTERACTIVE) == {}
    assert told(made, BULK).keys() == {"llama-cpp"}
    ours = servers(home, LOCAL_NETWORKS="192.0.2.0/24", **far)
    assert told(ours, INTERACTIVE).keys() == {"llama-cpp"}


def test_addresses_are_ours_only_if_all_of_them_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://127.0.0.1:1", "http://[::1]:1/v1", "http://127.9.9.9"):
        assert is_own(url)
    for url in ("http://192.0.2.1", "http://no-such-host.invalid", "http://", "nonsense", ""):
        assert not is_own(url)
    ours = networks("10.0.0.0/8 fd00::/8,192.0.2.0/24")
    assert is_own("http://10.4.5.6:80/v1", ours)
    assert not is_own("http://172.16.0.1", ours)
    with pytest.raises(ValueError, match="nonsense"):
        networks("10.0.0.0/8, nonsense")
    found = [(2, 1, 6, "", ("127.0.0.1", 0)), (2, 1, 6, "", ("192.0.2.9", 0))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    assert not is_own("http://half.example")


def test_an_ollama_that_answers_is_used_and_said(
    home: Home, ollama: FakeOllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "DEFAULT_OLLAMA_URL", ollama.url)
    monkeypatch.setattr(plan, "ollama_version", partial(ollama_version, timeout_s=10))
    monkeypatch.setenv("http_proxy", NOBODY)
    assert ollama_version(ollama.url, timeout_s=10) == VERSION
    found = servers(home, OLLAMA="auto")
    for lanes in (INTERACTIVE, BULK):
        assert told(found, lanes)["ollama"] == ollama.url
    assert any(VERSION in note for note in found.notes)
    assert not any(told(found, CLOUD).values())
    assert found.document()["backends"]["ollama"] == ollama.url
    assert "ollama" not in told(servers(home, OLLAMA="off"), INTERACTIVE)


def test_an_ollama_that_does_not_answer_is_used_only_if_it_was_named(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "DEFAULT_OLLAMA_URL", NOBODY)
    assert "ollama" not in told(servers(home, OLLAMA="auto"), INTERACTIVE)
    named = servers(home, OLLAMA=NOBODY)
    assert told(named, INTERACTIVE)["ollama"] == NOBODY
    assert any("does not answer yet" in note for note in named.notes)
    far = servers(home, OLLAMA="http://192.0.2.7:11434", LLAMA="off")
    assert told(far, INTERACTIVE) == {}
    assert told(far, BULK) == {"ollama": "http://192.0.2.7:11434"}
    assert any("private workers do not use" in note for note in far.notes)


def test_what_is_named_by_hand_goes_before_what_is_found(home: Home) -> None:
    made = servers(
        home, OLLAMA="auto", BACKENDS="ollama=http://127.0.0.1:7 llama=http://127.0.0.1:8"
    )
    assert told(made, INTERACTIVE) == {
        "ollama": "http://127.0.0.1:7",
        "llama": "http://127.0.0.1:8",
    }
    assert (made.llama, made.notes) == ((), [])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"BACKENDS": "no-such"}, "there is no backend no-such"),
        ({"BACKEND_KEYS": "no-such=x"}, "there is no backend no-such"),
        ({"OLLAMA": "maybe"}, "VESTRY_OLLAMA is auto, off or a URL"),
        ({"LLAMA": "maybe"}, "VESTRY_LLAMA is auto or off"),
        ({"LLAMA_ALIAS": "gpt-4o-mini"}, "no such model of llama"),
        ({"CATALOGUE": "/no/such/file"}, "cannot be read"),
        ({"LOCAL_NETWORKS": "here"}, "here"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    home: Home, settings: dict[str, str], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        servers(home, **settings)
