"""Supervisor and guardian with small real processes: start, restart, drain, orphans."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.process_env import alive
from tests.waiting import eventually
from workers.home import CHECKOUT, Home, HomeInUseError, read_json
from workers.stack.process import Identity, base_environment
from workers.stack.supervisor import end_orphans

# A supervisor over the processes of a test.
PROGRAM = """
import signal, sys
from pathlib import Path
from workers.home import Home
from workers.stack.process import Command, base_environment
from workers.stack.supervisor import ProcessSpec, Stage, StartError, Supervisor
import workers.stack.supervisor as supervisor

home = Home(Path(sys.argv[1]))
supervisor.STOP_TIMEOUT_S, supervisor.FORCED_STOP_S = float(sys.argv[3]), 1.0
supervisor.START_LIMIT_S = float(sys.argv[4])

def spec(name, stage, code):
    ready = home.run / (name + ".ready")
    order = home.path / "order"
    text = '''
import signal, sys, time
from pathlib import Path
def end(*_):
    with open(%r, "a") as file: file.write(%r + " ")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
%s
Path(%r).touch()
while True: time.sleep(0.05)
''' % (str(order), name, code, str(ready))
    def prepare():
        ready.unlink(missing_ok=True)
        environment = {**base_environment(), "VESTRY_NAME": name}
        return Command([sys.executable, "-c", text], home.logs / (name + ".log"), environment)
    return ProcessSpec(name, stage, prepare, ready.exists)

home.create()
home.lock()
supervised = Supervisor(home, [spec(n, Stage[s], c) for n, s, c in eval(sys.argv[2])], notify=print)
supervised.catch_signals()
try:
    supervised.start(20)
    supervised.run()
except StartError as error:
    print(error)
    sys.exit(3)
finally:
    supervised.drain()
"""
THREE = [("base", "DATABASE", ""), ("middle", "CONTROL", ""), ("top", "WORKERS", "")]
STUBBORN = [*THREE, ("stubborn", "WORKERS", "signal.signal(signal.SIGTERM, signal.SIG_IGN)")]

Starter = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A home whose recorded processes are ended after the test."""
    home = Home(tmp_path / "home")
    yield home
    state = read_json(home.state)
    if recorded := state.get("supervisor"):
        Identity(**recorded).signal(signal.SIGKILL)
    end_orphans(home)


@pytest.fixture
def start(home: Home) -> Iterator[Starter]:
    """Starts PROGRAM with some processes."""
    started: list[subprocess.Popen[str]] = []

    def run(
        children: object = THREE,
        *,
        wait: bool = True,
        grace_s: float = 10.0,
        limit_s: float = 300.0,
        **environment: str,
    ) -> Any:
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", PROGRAM, str(home.path)),
                *(repr(children), str(grace_s), str(limit_s)),
            ],
            cwd=CHECKOUT,
            env={**base_environment(), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        if wait:
            eventually(lambda: own_state(home, process).get("ready"))
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()


def own_state(home: Home, supervisor: subprocess.Popen[str]) -> dict[str, Any]:
    state = read_json(home.state)
    return state if (state.get("supervisor") or {}).get("pid") == supervisor.pid else {}


def pids(home: Home) -> dict[str, int]:
    return {p["name"]: p["pid"] for p in read_json(home.state)["processes"]}


def test_drain_ends_the_last_stage_first_and_every_process(home: Home, start: Starter) -> None:
    supervisor = start()
    before = [*pids(home).values(), read_json(home.state)["guardian"]]

    supervisor.send_signal(signal.SIGTERM)

    assert supervisor.wait(30) == 0
    assert (home.path / "order").read_text().split() == ["top", "middle", "base"]
    assert not any(alive(pid) for pid in before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_supervisor_drains_on_ctrl_c_and_on_a_closed_terminal(
    home: Home, start: Starter, number: signal.Signals
) -> None:
    supervisor = start()

    supervisor.send_signal(number)

    assert supervisor.wait(30) == 0
    assert (home.path / "order").read_text().split() == ["top", "middle", "base"]


def test_drain_ends_a_process_that_ignores_sigterm(home: Home, start: Starter) -> None:
    supervisor = start(STUBBORN, grace_s=1.0)
    stubborn = pids(home)["stubborn"]

    supervisor.send_signal(signal.SIGTERM)

    assert supervisor.wait(30) == 0
    assert not alive(stubborn)


def test_second_signal_shortens_the_drain(start: Starter) -> None:
    supervisor = start(STUBBORN, grace_s=120)
    supervisor.send_signal(signal.SIGINT)
    time.sleep(2)
    assert supervisor.poll() is None

    supervisor.send_signal(signal.SIGINT)

    assert supervisor.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_process_is_restarted(home: Home, start: Starter, number: signal.Signals) -> None:
    start()
    before = pids(home)

    os.kill(before["middle"], number)

    eventually(lambda: pids(home)["middle"] not in (None, before["middle"]))
    eventually(lambda: all(p["state"] == "ready" for p in read_json(home.state)["processes"]))
    after = pids(home)
    assert {n: p for n, p in after.items() if n != "middle"} == {
        n: p for n, p in before.items() if n != "middle"
    }


def test_process_that_is_not_ready_in_time_is_restarted(home: Home, start: Starter) -> None:
    # The process hangs at its second start, not at its third.
    mark = str(home.path / "mark")
    code = (
        f"marks = Path({mark!r}); seen = marks.read_text() if marks.exists() else ''; "
        "marks.write_text(seen + 'x'); time.sleep(600 if len(seen) == 1 else 0)"
    )
    supervisor = start([("slow", "WORKERS", code)], limit_s=4.0)
    os.kill(pids(home)["slow"], signal.SIGKILL)
    eventually(lambda: Path(mark).read_text() == "xxx")
    eventually(lambda: read_json(home.state)["processes"][0]["state"] == "ready")
    supervisor.send_signal(signal.SIGTERM)
    assert "slow was ended by SIGKILL" in supervisor.communicate()[0]


def test_delay_of_restarts_grows(home: Home, start: Starter) -> None:
    supervisor = start([("flapping", "CONTROL", "")])
    for _ in range(4):
        pid = pids(home)["flapping"]
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        eventually(lambda pid=pid: pids(home)["flapping"] not in (None, pid))  # type: ignore[misc]
        waited = time.monotonic() - began
        eventually(lambda: read_json(home.state)["processes"][0]["state"] == "ready")
    supervisor.send_signal(signal.SIGTERM)

    output = supervisor.communicate()[0]
    assert "flapping was ended by SIGKILL" in output
    delays = [float(delay) for delay in re.findall(r"restarting it in ([0-9.]+) s", output)]
    assert delays[0] <= 0.3
    assert delays[3] > 2 * delays[0]
    assert waited > 1.0


def test_failed_start_ends_with_one_line_and_no_process(home: Home, start: Starter) -> None:
    supervisor = start([*THREE, ("broken", "WORKERS", "sys.exit(7)")], wait=False)

    out, _ = supervisor.communicate(timeout=30)

    assert supervisor.returncode == 3
    assert f"broken does not start; see {home.logs / 'broken.log'}" in out
    assert "ended with exit code 7" in out
    assert all(p["pid"] is None for p in read_json(home.state)["processes"])


def test_guardian_ends_all_processes_within_five_seconds_of_a_killed_supervisor(
    home: Home, start: Starter
) -> None:
    supervisor = start(STUBBORN, grace_s=1.0)
    children = list(pids(home).values())

    supervisor.kill()
    supervisor.wait()

    eventually(lambda: not any(alive(pid) for pid in children), within=5.0)


def test_killed_guardian_is_replaced_by_one_with_the_whole_register(
    home: Home, start: Starter
) -> None:
    supervisor = start()
    guardian = read_json(home.state)["guardian"]
    os.kill(guardian, signal.SIGKILL)
    eventually(lambda: read_json(home.state)["guardian"] != guardian)
    children = list(pids(home).values())

    supervisor.kill()
    supervisor.wait()

    eventually(lambda: not any(alive(pid) for pid in children), within=5.0)


def test_next_start_ends_the_orphans_of_a_killed_supervisor_and_guardian(
    home: Home, start: Starter
) -> None:
    first = start()
    state = read_json(home.state)
    os.kill(state["guardian"], signal.SIGSTOP)
    try:
        first.kill()
        first.wait()
        orphans = [p["pid"] for p in state["processes"]]
        assert all(alive(pid) for pid in orphans)

        start()
    finally:
        os.kill(state["guardian"], signal.SIGKILL)

    assert not any(alive(pid) for pid in orphans)
    assert set(pids(home).values()).isdisjoint(orphans)


def test_other_process_with_a_recorded_pid_is_not_ended(home: Home, start: Starter) -> None:
    home.create()
    unrelated = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        recorded = {"pid": unrelated.pid, "started": time.time() - 500, "kill_signal": 9}
        home.state.write_text(json.dumps({"processes": [{"identity": recorded}, {"name": "torn"}]}))

        start()

        assert unrelated.poll() is None
    finally:
        unrelated.kill()
        unrelated.wait()


def test_home_in_use_is_refused(home: Home, start: Starter) -> None:
    supervisor = start()

    with pytest.raises(HomeInUseError, match=rf"already running in .*pid {supervisor.pid}"):
        home.lock()


def test_process_inherits_no_secret(home: Home, start: Starter) -> None:
    start(
        OPENAI_API_KEY="planted",
        AWS_SECRET_ACCESS_KEY="planted",
        VESTRY_KEYRING_FILE="planted",
        PYTHONPATH="",
    )

    for name, pid in pids(home).items():
        environment = psutil.Process(pid).environ()
        assert environment["VESTRY_NAME"] == name
        assert "planted" not in environment.values()
        assert set(environment) <= {
            "HOME", "TZ", "TMPDIR", "PATH", "LANG", "PYTHONUNBUFFERED", "VESTRY_NAME", "LC_CTYPE",
            "HF_HOME", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
            "ROCR_VISIBLE_DEVICES",
        }  # fmt: skip
