"""The embedded servers: start, kill, restart, side by side, as root and as an ordinary user."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis
from redis.exceptions import AuthenticationError, NoPermissionError

from models.bootstrap import ROLES
from tests.cluster_template import migrated_home
from tests.process_env import arguments_and_environments
from tests.temp_stack_dir import temporary_home
from vestry.crypto.keyring import KeyRing
from workers.home import CHECKOUT, Home, HomeInUseError
from workers.settings import key_prefix
from workers.stack.dev_stack import DevStack, prepare_database
from workers.stack.process import base_environment
from workers.stack.valkey import PRIVACIES


@pytest.fixture
def home() -> Iterator[Path]:
    # A name that a configuration file must quote.
    with migrated_home(prefix="vestry tést-") as path:
        path.chmod(0o755)
        yield path
        end_processes_of(path)


@pytest.fixture
def fresh_home() -> Iterator[Path]:
    """A home without a database."""
    with temporary_home() as path:
        yield path


def processes_of(home: Path) -> list[psutil.Process]:
    """Every process with the home in its command line, or its working directory below it."""
    processes = []
    for process in psutil.process_iter():
        try:
            inside = process.cwd().startswith(str(home))
            if inside or any(str(home) in part for part in process.cmdline()):
                processes.append(process)
        except psutil.Error:
            continue
    return [process for process in processes if process.pid != os.getpid()]


def end_processes_of(home: Path) -> None:
    killed = processes_of(home)
    for process in killed:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(killed, timeout=10)


def server(stack: DevStack, name: str) -> psutil.Process:
    port = {"postgres": stack.postgres.port, "valkey": stack.valkey.port}[name]
    for process, _ in stack.processes:
        if any(str(port) in part for part in psutil.Process(process.pid).cmdline()) or (
            name == "valkey" and "valkey" in psutil.Process(process.pid).name()
        ):
            return psutil.Process(process.pid)
    raise AssertionError(f"{name} does not run")


def insert(stack: DevStack, word: str) -> None:
    with psycopg.connect(stack.superuser_url) as conn:
        conn.execute("CREATE TABLE IF NOT EXISTS public.kept (word text)")
        conn.execute("INSERT INTO public.kept VALUES (%s)", [word])


def words(stack: DevStack) -> list[str]:
    with psycopg.connect(stack.superuser_url) as conn:
        return [row[0] for row in conn.execute("SELECT word FROM public.kept ORDER BY word")]


def test_every_role_can_log_in_to_the_migrated_database(stack: DevStack) -> None:
    for role in ROLES:
        with psycopg.connect(stack.database_url(role)) as conn:
            assert conn.execute("SELECT current_user").fetchone() == (role,)
    with psycopg.connect(stack.superuser_url) as conn:
        assert conn.execute("SELECT count(*) FROM vestry.lanes").fetchone() == (10,)
        (version,) = conn.execute("SHOW server_version_num").fetchone() or ("",)
        assert int(version) >= 180000
    KeyRing.load(stack.keyring)


def test_second_start_neither_bootstraps_nor_migrates(
    fresh_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DevStack(fresh_home) as stack:
        insert(stack, "first")
        ports = (stack.postgres.port, stack.valkey.port)
        keyring = stack.keyring.read_bytes()

    def called(*_: object) -> None:
        raise AssertionError("bootstrap or migration was called")

    monkeypatch.setattr("models.bootstrap.bootstrap", called)
    monkeypatch.setattr("models.bootstrap.migrate", called)
    with DevStack(fresh_home) as stack:
        assert words(stack) == ["first"]
        assert (stack.postgres.port, stack.valkey.port) == ports
        assert stack.keyring.read_bytes() == keyring
        # A new password is a change: this would migrate.
        stack.postgres.password_file("vestry_producer").unlink()
        with pytest.raises(AssertionError, match="was called"):
            prepare_database(stack.postgres)


def test_stop_ends_every_process_and_closes_the_ports(home: Path) -> None:
    with DevStack(home) as stack:
        ports = (stack.postgres.port, stack.valkey.port)
        assert len(processes_of(home)) > 2

    assert processes_of(home) == []
    assert not [path for path in home.rglob("*") if path.is_socket()]
    for port in ports:
        with socket.socket() as client:
            assert client.connect_ex(("127.0.0.1", port)) != 0


def test_data_survives_a_killed_postgres_with_running_backends(home: Path) -> None:
    stack = DevStack(home).start()
    insert(stack, "kept")
    busy = psycopg.connect(stack.superuser_url)
    busy.execute("SELECT 1")
    server(stack, "postgres").kill()
    stack.stop()

    assert (home / "postgres" / "data" / "postmaster.pid").exists()
    with DevStack(home) as again:
        assert words(again) == ["kept"]
    busy.close()


def test_start_ends_earlier_servers_that_still_run(home: Path) -> None:
    # As after supervisor and guardian were killed together.
    stack = DevStack(home).start()
    insert(stack, "kept")
    old = [process.pid for process, _ in stack.processes]
    orphans = list(stack.processes)
    stack.processes.clear()
    stack.stop()

    with DevStack(home) as again:
        assert words(again) == ["kept"]
        for process, _ in orphans:
            process.poll()
        assert {process.pid for process, _ in again.processes}.isdisjoint(old)
        with redis.Redis.from_url(again.broker_url("private")) as broker:
            assert broker.ping()
    for process, _ in orphans:
        process.kill()
        process.wait()


def test_lock_file_with_the_pid_of_another_process_is_removed(home: Path) -> None:
    with DevStack(home) as stack:
        insert(stack, "kept")
    lock = home / "postgres" / "data" / "postmaster.pid"
    status = (home / "postgres" / "data").stat()
    unrelated = subprocess.Popen(
        ["sleep", "60"],
        **({"user": status.st_uid, "group": status.st_gid} if os.geteuid() == 0 else {}),  # type: ignore[call-overload]
    )
    try:
        lock.write_text(f"{unrelated.pid}\n{lock.parent}\n1\n5432\n\n127.0.0.1\n\nready   \n")
        os.chown(lock, status.st_uid, status.st_gid)

        with DevStack(home) as stack:
            assert words(stack) == ["kept"]

        assert unrelated.poll() is None
    finally:
        unrelated.kill()
        unrelated.wait()


def test_killed_valkey_restarts_empty(home: Path) -> None:
    stack = DevStack(home).start()
    with redis.Redis.from_url(stack.broker_url("private")) as broker:
        broker.lpush("vestry.private.lane", "hint")
    server(stack, "valkey").kill()
    stack.stop()

    with DevStack(home) as again, redis.Redis.from_url(again.broker_url("private")) as broker:
        assert broker.llen("vestry.private.lane") == 0


def test_taken_port_is_replaced_by_another(home: Path) -> None:
    with DevStack(home) as stack:
        port = stack.postgres.port
    with socket.socket() as taker:
        taker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taker.bind(("127.0.0.1", port))
        taker.listen()

        with DevStack(home) as stack:
            assert stack.postgres.port != port
            assert psycopg.connect(stack.superuser_url).execute("SELECT 1").fetchone() == (1,)


def test_two_homes_run_side_by_side(fresh_home: Path, stack: DevStack) -> None:
    with DevStack(fresh_home) as other:
        ports = {stack.postgres.port, stack.valkey.port, other.postgres.port, other.valkey.port}
        assert len(ports) == 4
        insert(other, "other")
        with psycopg.connect(stack.superuser_url) as conn:
            assert conn.execute("SELECT to_regclass('public.kept')").fetchone() == (None,)
        assert other.postgres.password_file("vestry_producer").read_text() != (
            stack.postgres.password_file("vestry_producer").read_text()
        )


def test_home_in_use_is_refused(stack: DevStack) -> None:
    with pytest.raises(HomeInUseError):
        DevStack(stack.home).start()
    with psycopg.connect(stack.superuser_url) as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_new_passwords_take_effect_at_the_next_start(home: Path) -> None:
    with DevStack(home) as stack:
        stack.postgres.password_file("vestry_producer").unlink()

    with (
        DevStack(home) as stack,
        psycopg.connect(stack.database_url("vestry_producer")) as conn,
    ):
        assert conn.execute("SELECT 1").fetchone() == (1,)


def test_data_without_its_password_is_refused_and_kept(home: Path) -> None:
    with DevStack(home) as stack:
        insert(stack, "kept")
        file = stack.postgres.password_file("postgres")
    password = file.read_text()
    file.unlink()

    with pytest.raises(RuntimeError, match="its password is missing from"):
        DevStack(home).start()

    file.write_text(password)
    with DevStack(home) as stack:
        assert words(stack) == ["kept"]


def test_secrets_are_readable_by_their_owner_only(stack: DevStack) -> None:
    # Other accounts traverse `run`, each to its process directory.
    traversable = 0o711 if os.geteuid() == 0 else 0o700
    for name, mode in (("secrets", 0o700), ("logs", 0o700), ("run", traversable)):
        assert stat.S_IMODE((stack.home / name).stat().st_mode) == mode
    files = [path for path in (stack.home / "secrets").iterdir() if path.is_file()]
    assert len(files) >= len(ROLES) + 1
    for path in [*files, stack.keyring, stack.home / "valkey" / "users.acl"]:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    passwords = [path.read_text() for path in files]
    every = (process.pid for process in processes_of(stack.home))
    for line in arguments_and_environments(every, {process.pid for process, _ in stack.processes}):
        assert not any(password in line for password in passwords)
    acl = (stack.home / "valkey" / "users.acl").read_text()
    assert not any(password in acl for password in passwords)


def test_postgres_refuses_a_wrong_password_and_logs_no_content(stack: DevStack) -> None:
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(stack.database_url("vestry_owner"), password="wrong")
    with psycopg.connect(stack.superuser_url, autocommit=True) as conn:
        for statement in (
            "SELECT 'canary-plain'::int",
            'SELECT \'{"text": "canary-json"\'::json',
            "DO $$ BEGIN RAISE EXCEPTION 'a' USING DETAIL = 'canary-detail'; END $$",
            "CREATE TEMP TABLE t (v text CHECK (v = '')); INSERT INTO t VALUES ('canary-row')",
        ):
            with pytest.raises(psycopg.Error):
                conn.execute(statement)
        with pytest.raises(psycopg.Error):
            conn.execute("SELECT 1 / (length(%s) - 12)", ["canary-param"])
    log = (stack.home / "logs" / "postgres.log").read_text()
    assert "ERROR" in log
    for word in ("json", "detail", "row", "param"):
        assert f"canary-{word}" not in log


@pytest.mark.parametrize(("user", "other"), [PRIVACIES, PRIVACIES[::-1]])
def test_broker_user_has_no_access_to_the_other_class(
    clean: DevStack, user: str, other: str
) -> None:
    with redis.Redis.from_url(clean.broker_url(user)) as broker:
        assert broker.lpush(f"{key_prefix(user)}lane", "id") == 1
        assert broker.publish(f"{key_prefix(user)}/0.celeryev/x", "e") == 0
        for operation in (
            lambda: broker.lpush(f"{key_prefix(other)}lane", "id"),
            lambda: broker.llen(f"{key_prefix(other)}lane"),
            lambda: broker.publish(f"{key_prefix(other)}/0.celeryev/x", "e"),
            lambda: broker.execute_command("PSUBSCRIBE", "*"),
            lambda: broker.execute_command("PSUBSCRIBE", f"{key_prefix(other)}/0.celeryev/*"),
            lambda: broker.eval("return 1", 1, f"{key_prefix(other)}lane"),
            broker.flushall,
            broker.config_get,
            broker.keys,
        ):
            with pytest.raises(NoPermissionError):
                operation()
        with pytest.raises(redis.ResponseError, match="ACL failure"):
            broker.eval(f"return redis.call('llen', '{key_prefix(other)}lane')", 0)


def test_dispatcher_pushes_hints_and_reads_none(clean: DevStack) -> None:
    with redis.Redis.from_url(clean.broker_url("dispatcher")) as broker:
        for privacy in PRIVACIES:
            assert broker.lpush(f"{key_prefix(privacy)}lane", "id") == 1
            assert broker.llen(f"{key_prefix(privacy)}lane") == 1
            for operation in (
                lambda p=privacy: broker.rpop(f"{key_prefix(p)}lane"),
                lambda p=privacy: broker.lrange(f"{key_prefix(p)}lane", 0, -1),
                lambda p=privacy: broker.delete(f"{key_prefix(p)}lane"),
                lambda p=privacy: broker.sadd(f"{key_prefix(p)}lane2", "x"),
                lambda: broker.lpush("other", "id"),
            ):
                with pytest.raises(NoPermissionError):
                    operation()


def test_broker_requires_a_password(stack: DevStack) -> None:
    with (
        redis.Redis(port=stack.valkey.port) as broker,
        pytest.raises((AuthenticationError, NoPermissionError)),
    ):
        broker.ping()


CYCLE = """
import sys
from pathlib import Path
import psycopg
from workers.stack.dev_stack import DevStack, prepare_database
for _ in range(2):
    with DevStack(Path(sys.argv[1])) as stack:
        with psycopg.connect(stack.superuser_url) as conn:
            print(conn.execute("SELECT count(*) FROM vestry.lanes").fetchone()[0])
"""


def python_for(account: pwd.struct_passwd, directory: Path) -> list[str]:
    """A command that runs Python with these packages under another account."""
    # Before 3.11.3 redis needs a backport of asyncio's timeout, which is not installed here.
    (directory / "async_timeout.py").write_text("from asyncio import timeout\n")
    packages = f"{Path(psycopg.__file__).parent.parent}:{directory}"
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        argv = ["/usr/bin/env", f"PYTHONPATH={packages}", python]
        result = subprocess.run(
            [*argv, "-c", "import psycopg, psutil, redis, sqlalchemy"],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd=CHECKOUT,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if result.returncode == 0:
            return argv
    pytest.skip(f"{account.pw_name} can reach no {name} with the packages of this one")


@pytest.mark.skipif(os.geteuid() != 0, reason="runs as an ordinary user already")
def test_stack_runs_under_an_ordinary_account(home: Path) -> None:
    account = pwd.getpwnam("nobody")
    os.chown(home, account.pw_uid, account.pw_gid)

    done = subprocess.run(
        [*python_for(account, home), "-c", CYCLE, str(home / "stack")],
        cwd=CHECKOUT,
        env=base_environment() | {"HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"},
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout.split()) == (0, ["10", "10"]), done.stderr
    assert (home / "stack").stat().st_uid == account.pw_uid
    assert processes_of(home) == []


def test_lack_of_free_ports_is_an_error(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.create()
    with pytest.raises(OSError, match="no free port"):
        home.choose_port("x", free=lambda _: False)
