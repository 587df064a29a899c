"""Isolation of a private worker: preflight checks, network guard, core dumps, temporary files."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from inference.catalogue.loader import SHIPPED, load, parse
from inference.remote.local_network import networks
from workers.isolation.preflight import (
    PrivacyPreflightError,
    check_private_worker,
    cloud_credentials,
)

ROOT = Path(__file__).resolve().parents[2]
HARMLESS = {
    "PATH", "HOME", "USER", "LANG", "TMPDIR", "HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES", "OLLAMA_HOST",
    "VESTRY_KEYRING_FD", "VESTRY_BACKEND_KEYS", "VESTRY_LLAMA_KEY_FILE", "NVIDIA_VISIBLE_DEVICES",
    "VESTRY_DATABASE_PASSWORD_FILE", "AWS_REGION", "AWS_EXECUTION_ENV", "GOOGLE_CLOUD_PROJECT",
    "HTTP_PROXY", "KEYBOARD", "SSH_AUTH_SOCK",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["OPENAI_API_KEY", "OPENAI_ADMIN_KEY_API_KEY", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN",
     "AZURE_OPENAI_API_KEY", "AZURE_CLIENT_SECRET", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY",
     "AWS_SESSION_TOKEN", "AWS_BEARER_TOKEN_BEDROCK", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
     "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_API_KEY",
     "GEMINI_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "CO_API_KEY",
     "COHERE_API_KEY", "MISTRAL_API_KEY", "GROQ_API_KEY", "TOGETHER_API_KEY", "OPENROUTER_API_KEY",
     "REPLICATE_API_TOKEN", "OLLAMA_API_KEY", "VOYAGE_API_KEY", "WANDB_API_KEY",
     "SOME_NEW_PROVIDER_API_KEY", "openai_api_key"],
)  # fmt: skip
def test_cloud_credentials_are_detected_by_name(name: str) -> None:
    assert cloud_credentials([*HARMLESS, name]) == [name]
    with pytest.raises(PrivacyPreflightError, match=name) as caught:
        check_private_worker({name: "quartzite"}, load().only({}), keys=())
    assert "quartzite" not in str(caught.value)


def test_other_variables_are_no_credentials() -> None:
    assert cloud_credentials(HARMLESS) == []


def test_private_worker_of_local_backends_starts() -> None:
    local = load().only({"sentence-transformers": None, "llama": "http://127.0.0.1:9/v1"})
    check_private_worker({}, local, keys=["llama"])


@pytest.mark.parametrize("name", ["openai", "anthropic"])
def test_cloud_backend_and_cloud_key_are_refused(name: str) -> None:
    with pytest.raises(PrivacyPreflightError, match=f"cloud backend {name} is enabled"):
        check_private_worker({}, load().only({name: None}), keys=())
    with pytest.raises(PrivacyPreflightError, match=f"a key of {name}"):
        check_private_worker({}, load().only({"ollama": None}), keys=[name])


@pytest.mark.parametrize(
    "url", ["https://8.8.8.8/v1", "http://10.9.8.7:8080", "http://no.invalid/"]
)
def test_local_backend_with_an_external_address_is_refused(url: str) -> None:
    with pytest.raises(PrivacyPreflightError, match="backend llama"):
        check_private_worker({}, load().only({"llama": url}), keys=())


def test_cloud_that_the_catalogue_calls_local_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    real = SHIPPED.read_text(encoding="utf-8")
    edited = parse(real.replace("openai_http, locality: cloud", "openai_http, locality: local"))
    external = [(2, 1, 6, "", ("192.0.2.7", 443))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: external)
    with pytest.raises(
        PrivacyPreflightError, match=r"backend openai: api\.openai\.com is 192\.0\.2\.7"
    ):
        check_private_worker({}, edited.only({"openai": None}), keys=())


def test_backend_in_a_local_network_is_accepted() -> None:
    catalogue = load().only({"llama": "http://10.9.8.7:8080"})
    check_private_worker({}, catalogue, keys=(), allowed=networks("10.9.0.0/16"))


def test_message_has_all_reasons() -> None:
    with pytest.raises(PrivacyPreflightError) as caught:
        check_private_worker(
            {"HF_TOKEN": "x"}, load().only({"openai": None, "ollama": None}), keys=["openai"]
        )
    assert str(caught.value).count(";") == 2


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"OPENAI_API_KEY": "quartzite"}, "OPENAI_API_KEY"), ({"VESTRY_BACKENDS": "openai"}, "cloud"),
     ({"VESTRY_BACKENDS": "llama=http://192.0.2.1/v1"}, "192.0.2.1")],
)  # fmt: skip
def test_worker_refuses_to_start(extra: dict[str, str], message: str) -> None:
    environment = {
        "VESTRY_PRIVACY": "private", "VESTRY_LANES": "private.bulk.gpu",
        "VESTRY_DATABASE_URL": "postgresql://nobody@127.0.0.1:9/x",
        "VESTRY_BROKER_URL": "redis://127.0.0.1:9/0", "VESTRY_EMBEDDING_BACKEND": "echo",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "workers.worker"], cwd=ROOT, env=environment | extra,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert message in done.stderr
    assert "quartzite" not in done.stderr


def run(script: str, **environment: str) -> str:
    """Run a script in its own process, since an audit hook cannot be removed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


CONNECTING = """
    import socket, threading, urllib.request
    from inference.remote import egress
    from workers.isolation.network_guard import block_external_connections

    server = socket.create_server(("127.0.0.1", 0))
    local = server.getsockname()
    servers = ("redis://user:word@broker.invalid:6379/0", "postgresql://db/x")
    block_external_connections(servers, cloud=CLOUD)

    def outcome(act):
        try:
            act()
        except PermissionError:
            return "refused"
        except OSError:
            return "tried"
        return "done"

    def connect(host, port=9):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as s:
            s.settimeout(0.05)
            s.connect((host, port))

    def send():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"x", ("192.0.2.1", 53))

    def on_record():
        token = egress._sending.set(True)
        try:
            connect("192.0.2.1")
        finally:
            egress._sending.reset(token)

    print(outcome(lambda: connect(*local)), outcome(lambda: connect("192.0.2.1")),
          outcome(lambda: connect("2001:db8::1")), outcome(send),
          outcome(lambda: urllib.request.urlopen("http://192.0.2.1/", timeout=0.05).read()),
          outcome(on_record))
    pair = socket.socketpair()
    pair[0].sendall(b"x")
"""


def test_network_guard_refuses_external_connections() -> None:
    private, cloud = (run(f"CLOUD = {c}\n" + textwrap.dedent(CONNECTING)) for c in (False, True))
    assert private.split() == ["done", *["refused"] * 3, "tried", "refused"]
    assert cloud.split() == ["done", *["refused"] * 3, "tried", "tried"]


def test_core_dumps_and_debuggers_are_disabled() -> None:
    script = """
        import ctypes, resource, sys
        from workers.isolation.preflight import disable_core_dumps
        resource.setrlimit(resource.RLIMIT_CORE, resource.getrlimit(resource.RLIMIT_CORE)[1:] * 2)
        disable_core_dumps()
        get_dumpable = 3
        dumpable = ctypes.CDLL(None).prctl(get_dumpable) if sys.platform == "linux" else 0
        print(resource.getrlimit(resource.RLIMIT_CORE), dumpable)
    """
    assert run(script) == "(0, 0) 0\n"
