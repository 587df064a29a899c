"""`vestry up` and `vestry down` with the real servers and processes."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from tests.cluster_template import migrated_home
from tests.process_env import alive, arguments_and_environments, environment
from tests.waiting import eventually
from workers.home import CHECKOUT, Home, HomeInUseError
from workers.settings import Settings
from workers.stack.background import BackgroundStack, running_in, start_background, sweep
from workers.stack.embedded_stack import has_accelerator, worker_lanes, worker_name
from workers.stack.process import Identity, base_environment
from workers.stack.settings import TUNABLES, inherited_environment
from workers.stack.supervisor import StartError

ECHO = {"VESTRY_EMBEDDING_BACKEND": "echo"}
CONTROL = ("dispatcher", "reconciler")
START_S = 150.0
"""Timeout of a start or a stop beside other tests."""


@pytest.fixture
def home() -> Iterator[Path]:
    with migrated_home() as path:
        yield path
        if running := running_in(path):
            running.supervisor.signal(signal.SIGKILL)
        eventually(lambda: sweep_or_zero(path) == 0, within=START_S)


def sweep_or_zero(home: Path) -> int:
    try:
        return sweep(home)
    except HomeInUseError:
        return 1


def family(running: BackgroundStack) -> list[int]:
    """Every process of the stack, including Postgres's backends."""
    pids = [p.pid for p in psutil.Process(running.supervisor.pid).children(recursive=True)]
    assert len(pids) > 5
    return pids


def vestry(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "workers.stack.commands", *arguments],
        cwd=CHECKOUT,
        env=base_environment() | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def write_and_read(running: BackgroundStack, word: str) -> list[str]:
    url = (running.home / "secrets" / "postgres.postgres.password").read_text()
    port = json.loads((running.home / "ports.json").read_text())["postgres"]
    with psycopg.connect(f"postgresql://postgres:{url}@127.0.0.1:{port}/vestry") as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS public.kept (word text)")
        conn.execute("INSERT INTO public.kept VALUES (%s)", [word])
        return [row[0] for row in conn.execute("SELECT word FROM public.kept ORDER BY word")]


def test_up_reports_its_processes_and_down_ends_them(home: Path) -> None:
    up = vestry("up", "--detach", "--json", "--home", str(home), "--no-flower", "--only",
                "dispatcher")  # fmt: skip
    assert up.returncode == 0, up.stderr
    document = json.loads(up.stdout)
    running = running_in(home)
    assert running is not None
    pids = family(running)

    assert [p["name"] for p in document["processes"]] == ["postgres", "valkey", "dispatcher"]
    assert all(p["state"] == "ready" and alive(p["pid"]) for p in document["processes"])
    assert document["supervisor_pid"] == running.supervisor.pid
    assert stat.S_IMODE((home / "client.json").stat().st_mode) == 0o600
    with psycopg.connect(running.client["database_url"]) as conn:
        assert conn.execute("SELECT current_user").fetchone() == ("vestry_producer",)

    second = vestry("up", "--home", str(home))
    assert second.returncode == 3
    assert second.stderr.strip() == (
        f"Error: a stack is already running in {home} (pid {running.supervisor.pid}); stop it first"
    )

    down = vestry("down", "--json", "--home", str(home))
    assert (down.returncode, json.loads(down.stdout)["stopped"]) == (0, True)
    assert not any(alive(pid) for pid in [*pids, running.supervisor.pid])
    assert not (home / "client.json").exists()
    again = vestry("down", "--json", "--home", str(home))
    assert (again.returncode, json.loads(again.stdout)["stopped"]) == (0, False)


def test_up_in_the_foreground_shows_one_screen_and_drains_on_ctrl_c(home: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "workers.stack.commands",
            "up",
            "--home",
            str(home),
            "--only",
            "reconciler",
        ],
        cwd=CHECKOUT,
        env=base_environment() | {"COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: (s := running_in(home)) and s.state().get("ready"), within=START_S)
    running = running_in(home)
    assert running is not None
    pids = family(running)

    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert process.returncode == 0, err
    for word in ("supervisor", "postgres", "valkey", "reconciler", "127.0.0.1:", "ready", "Logs:"):
        assert word in out
    assert len(out.splitlines()) < 24
    assert "Draining" in err
    assert not any(alive(pid) for pid in pids)


def test_stack_ends_with_a_killed_supervisor_and_the_next_start_resumes(home: Path) -> None:
    running = start_background(home, flower=False, only=CONTROL)
    write_and_read(running, "kept")
    pids = family(running)

    os.kill(running.supervisor.pid, signal.SIGKILL)
    assert running.process is not None
    running.process.wait()
    eventually(lambda: not any(alive(pid) for pid in pids), within=5.0)

    with start_background(home, flower=False, only=CONTROL) as resumed:
        assert write_and_read(resumed, "more") == ["kept", "more"]


def test_next_start_resumes_after_supervisor_and_guardian_were_killed(home: Path) -> None:
    running = start_background(home, flower=False, only=CONTROL)
    write_and_read(running, "kept")
    pids = family(running)
    os.kill(running.state()["guardian"], signal.SIGSTOP)
    os.kill(running.supervisor.pid, signal.SIGKILL)
    os.kill(running.state()["guardian"], signal.SIGKILL)
    postgres = running.pid("postgres")
    assert postgres is not None
    assert alive(postgres)

    with start_background(home, flower=False, only=CONTROL) as resumed:
        assert not any(alive(pid) for pid in pids)
        assert write_and_read(resumed, "more") == ["kept", "more"]


def test_failed_start_gives_its_reason_in_one_line(home: Path) -> None:
    with pytest.raises(StartError, match="no such process: nonsense; there are dispatcher"):
        start_background(home, only=("nonsense",))
    with pytest.raises(StartError, match=r"dispatcher does not start; see .*dispatcher\.log"):
        start_background(
            home,
            {
                "VESTRY_EMBEDDING_BACKEND": "sentence-transformers",
                "VESTRY_EMBEDDING_MODEL": "no/such-model",
            },
            flower=False,
            only=("dispatcher",),
        )
    with pytest.raises(StartError, match=r"^--set: VESTRY_LEASE_S: must be greater than 0$"):
        start_background(home, {"VESTRY_LEASE_S": "-1"}, flower=False, only=("dispatcher",))
    assert running_in(home) is None
    wrong = vestry("up", "--home", str(home), "--set", "OPENAI_API_KEY=x")
    assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (2, 1)
    for unknown in ("VESTRY_SLOT", "VESTRY_KEYRING_FILE", "VESTRY_DATABASE_URL"):
        wrong = vestry("up", "--home", str(home), "--set", f"{unknown}=4")
        assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (2, 1)
        assert unknown in wrong.stderr
        assert "VESTRY_SLOTS" in wrong.stderr
    for detach in ((), ("--detach",)):
        wrong = vestry("up", "--home", str(home), *detach, VESTRY_WINDOW="8")
        assert (wrong.returncode, len(wrong.stderr.strip().splitlines())) == (2, 1)
        assert "VESTRY_WINDOW was renamed: set VESTRY_HINTS_PER_SLOT instead" in wrong.stderr


def test_inherited_settings_exist_and_have_no_secret() -> None:
    assert set(TUNABLES) <= {f"VESTRY_{name.upper()}" for name in Settings.model_fields}
    assert not [name for name in TUNABLES if "URL" in name or "FILE" in name]
    assert not [name for name in TUNABLES if "KEY" in name or "PASSWORD" in name]


def test_downloads_are_permitted_by_a_zero_only(monkeypatch: pytest.MonkeyPatch) -> None:
    for value, passed in (("0", {"HF_HUB_OFFLINE": "0"}), ("1", {}), ("", {}), ("no", {})):
        monkeypatch.setenv("HF_HUB_OFFLINE", value)
        monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
        assert {n: v for n, v in inherited_environment().items() if "OFFLINE" in n} == passed


@pytest.mark.slow
def test_permission_to_download_reaches_every_process(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    with start_background(home, ECHO, flower=False, only=("dispatcher",)) as running:
        pid = running.pid("dispatcher")
        assert pid is not None
        assert psutil.Process(pid).environ()["HF_HUB_OFFLINE"] == "0"
        assert psutil.Process(pid).environ()["TRANSFORMERS_OFFLINE"] == "1"


@pytest.mark.slow
def test_each_process_has_its_own_secrets_only(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for planted in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "VESTRY_DATABASE_URL", "PYTHONPATH"):
        monkeypatch.setenv(planted, "planted" if planted != "PYTHONPATH" else "")
    monkeypatch.setenv("VESTRY_LOG_LEVEL", "DEBUG")

    with start_background(home, ECHO) as running:
        processes = {p["name"]: p for p in running.state()["processes"]}
        environments = {
            name: environment(p["pid"])
            for name, p in processes.items()
            if name not in {"postgres", "valkey"}
        }
        nice = {name: psutil.Process(p["pid"]).nice() for name, p in processes.items()}
        secrets = [path.read_text().strip() for path in Home(home).secrets.glob("*.password")]
        lines = arguments_and_environments(family(running), {p["pid"] for p in processes.values()})
        flower = running.client["flower"]
        check_flower(flower)

    assert not any(secret in line for secret in secrets for line in lines)
    workers = worker_lanes(has_accelerator({}))
    assert set(environments) == {
        "dispatcher", "reconciler", "flower-private", "flower-shareable",
        *map(worker_name, workers),
    }  # fmt: skip
    for name, variables in environments.items():
        private_worker = name.startswith("private-")
        if variables is None:
            assert private_worker
            continue
        assert "planted" not in variables.values()
        assert "OPENAI_API_KEY" not in variables
        assert variables["HF_HUB_OFFLINE"] == "1"
        assert variables["VESTRY_EMBEDDING_BACKEND"] == "echo"
        assert variables["VESTRY_LOG_LEVEL"] == "DEBUG"
        # Only private workers have the key ring, by descriptor.
        assert ("VESTRY_KEYRING_FD" in variables) == private_worker
        assert "VESTRY_KEYRING_FILE" not in variables
        user = variables.get("VESTRY_BROKER_URL", "//none@").split("//")[1].split("@")[0]
        assert user == next(
            (word for word in ("private", "shareable", "dispatcher") if word in name), "none"
        )
        login = variables.get("VESTRY_DATABASE_URL", "//none@").split("//")[1].split("@")[0]
        assert login == (
            "vestry_private" if private_worker
            else "vestry_shareable" if name.startswith("shareable-")
            else "none" if name.startswith("flower")
            else "vestry_control"
        )  # fmt: skip
    assert {name for name, value in nice.items() if value == 19} == {
        name for name in processes if "-bulk-" in name
    }
    lanes = [lane for p in processes.values() for lane in p["lanes"]]
    assert sorted(lanes) == sorted(lane for lanes in workers for lane in lanes)


def check_flower(flower: dict[str, Any]) -> None:
    """Each Flower requires its password, listens on loopback and accepts no command for workers."""
    for entry in flower.values():
        assert entry["url"].startswith("http://127.0.0.1:")
        page = f"{entry['url']}/workers"
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(page, timeout=60)  # noqa: S310
        password = Path(entry["password_file"]).read_text().strip()
        token = base64.b64encode(f"{entry['user']}:{password}".encode()).decode()
        headers = {"Authorization": f"Basic {token}"}
        with urllib.request.urlopen(urllib.request.Request(page, headers=headers)) as response:  # noqa: S310
            assert response.status == 200
        shutdown = urllib.request.Request(  # noqa: S310
            f"{entry['url']}/api/worker/shutdown/any", headers=headers, method="POST"
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(shutdown, timeout=60)  # noqa: S310
        assert refused.value.code in {403, 405}


OCR = [
    ("private.interactive.cpu",), ("private.bulk.cpu",),
    ("shareable.interactive.cpu",), ("shareable.bulk.cpu",),
]  # fmt: skip


def test_accelerator_serves_both_latencies_in_one_process() -> None:
    assert worker_lanes(accelerator=True) == [
        ("private.interactive.gpu", "private.bulk.gpu"),
        ("shareable.interactive.gpu", "shareable.bulk.gpu"),
        *OCR,
    ]
    assert [len(lanes) for lanes in worker_lanes(accelerator=False)] == [1] * 8


def test_identity_detects_a_reused_pid() -> None:
    identity = Identity.of(os.getpid())
    assert identity is not None
    assert identity.alive()
    assert not replace(identity, started=identity.started - 100).alive()
    assert not replace(identity, boot="another").alive()


@pytest.mark.skipif(not psutil.LINUX, reason="other systems' start times depend on the wall clock")
def test_identity_is_valid_after_the_clock_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = Identity.of(os.getpid())
    booted, started = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: booted + 3600)
    assert psutil.Process().create_time() - started > 1800, "the start time moved"
    assert identity is not None
    assert identity.alive()
