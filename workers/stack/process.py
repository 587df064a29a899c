"""Operating-system processes: accounts, minimal environments, start, identity and end."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO

import psutil

from workers.stack import mount_namespace

INHERITED = (
    "HOME",
    "TZ",
    "TMPDIR",
    "HF_HOME",
    "LD_LIBRARY_PATH",
    "CUDA_VISIBLE_DEVICES",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
)
"""The only variables a child inherits: locations, no secrets."""

LOG_LIMIT = 16 * 1024 * 1024
"""Bytes above which a log is rotated at the next start; one earlier log is kept."""

SAME_START_S = 2.0
"""Start times this close belong to one process: an id is reused much later. Linux reports its boot time
in whole seconds, which may differ between two readings."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux's id of this boot (random(4))."""


@dataclass(frozen=True, slots=True)
class Account:
    """User and group of a process; both None for the caller's."""

    uid: int | None = None
    gid: int | None = None
    views: Mapping[Path, Sequence[Path]] = field(default_factory=dict, compare=False)
    """Directories it may not traverse, with the paths it needs below each: see `mount_namespace`."""

    def run(self, argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end under this account, in a minimal environment, in "/"."""
        return subprocess.run(  # type: ignore[call-overload,no-any-return]
            list(argv),
            cwd="/",
            env=base_environment(),
            check=False,
            **self.popen_options(),
            **options,
        )

    @property
    def ids(self) -> tuple[int, int] | None:
        """User and group id; None for the caller's."""
        return None if self.uid is None or self.gid is None else (self.uid, self.gid)

    def own(self, path: Path) -> None:
        """Make this account the owner of a path, in a directory that no other account may change."""
        if self.ids is not None:
            os.chown(path, *self.ids)

    def can_enter(self, path: Path) -> bool:
        """Whether this account can enter a directory, through all of its parents."""
        if self.uid is None:
            return True
        argv = ["/bin/sh", "-c", 'cd "$1"', "sh", str(path)]
        return self.run(argv, stderr=subprocess.DEVNULL).returncode == 0

    def popen_options(self) -> dict[str, object]:
        """Options of `subprocess.Popen` for this account."""
        if self.uid is None or self.gid is None:
            return {}
        if self.views:
            # In a function: the mount namespace must be set up while the child is still root.
            return {"preexec_fn": partial(_become, self.uid, self.gid, self.views)}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def _become(uid: int, gid: int, views: Mapping[Path, Sequence[Path]]) -> None:
    cwd = Path.cwd()
    mount_namespace.bind_views(views)
    os.chdir(cwd)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def server_account(data: Path) -> Account:
    """Account of the servers: if the caller is root, an unprivileged one, as Postgres requires.

    Args:
        data: the data directory; its owner is kept, unless that is root.
    """
    if os.geteuid() != 0:
        return Account()
    if data.exists() and (status := data.stat()).st_uid != 0:
        return Account(status.st_uid, status.st_gid)
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise OSError("no unprivileged account for the servers: create the account nobody or daemon")


def base_environment() -> dict[str, str]:
    """Environment of every child: a path, a locale, and the INHERITED variables."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    venv = str(Path(sys.executable).parent)
    environment["PATH"] = f"{venv}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    environment["LANG"] = "C.UTF-8"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


@dataclass(frozen=True, slots=True)
class Command:
    """A process to start, with its whole environment."""

    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=base_environment)
    account: Account = field(default_factory=Account)
    cwd: Path = Path("/")
    nice: int = 0
    pass_fds: tuple[int, ...] = ()
    """Descriptors it inherits, under the same numbers."""
    stop_signal: signal.Signals = signal.SIGTERM
    """Requests an orderly end."""
    kill_signal: signal.Signals = signal.SIGKILL
    """Ends it at once. Postgres has SIGQUIT, which ends its backends too."""


def spawn(command: Command) -> subprocess.Popen[bytes]:
    """Start a command, its output appended to its 0600 log.

    In its own session, so that Ctrl-C in a terminal reaches only the supervisor.
    """
    prefix = ["nice", "-n", str(command.nice)] if command.nice else []
    with open_log(command.log) as log:
        return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
            [*prefix, *command.argv],
            env=dict(command.environment),
            cwd=command.cwd,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=command.pass_fds,
            **command.account.popen_options(),
        )


def open_log(path: Path) -> IO[bytes]:
    """Open a 0600 log for appending, after rotating it if it exceeds LOG_LIMIT."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def stop(process: subprocess.Popen[bytes], command: Command, grace_s: float = 15.0) -> None:
    """End a child by its stop signal, after `grace_s` by its kill signal."""
    for number, timeout_s in ((command.stop_signal, grace_s), (command.kill_signal, 5.0)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
            return
    process.kill()
    process.wait()


@dataclass(frozen=True, slots=True)
class Identity:
    """A process, identified by id, start time and boot: a reused id does not match.

    Attributes:
        pid: its id.
        started: on Linux, seconds from the boot to its start, by a clock that is never set; elsewhere
            seconds since the epoch.
        kill_signal: the signal that ends it at once.
        boot: id of the boot; empty where the system has none.
    """

    pid: int
    started: float
    kill_signal: int = signal.SIGKILL
    boot: str = ""

    @classmethod
    def of(cls, pid: int, kill_signal: int = signal.SIGKILL) -> Identity | None:
        """The process that has an id now; None if there is none."""
        try:
            return cls(pid, _started(psutil.Process(pid)), kill_signal, _boot())
        except psutil.Error:
            return None

    def alive(self) -> bool:
        """Whether it runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < SAME_START_S and self.boot == _boot()
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def signal(self, number: int) -> None:
        """Signal the process group that it leads, if it still runs."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


def _started(process: psutil.Process) -> float:
    """Start time. Setting the wall clock shifts it; on Linux it shifts the boot time equally."""
    created = float(process.create_time())
    return created - float(psutil.boot_time()) if psutil.LINUX else created


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def end_all(identities: Sequence[Identity], timeout_s: float = 2.0) -> None:
    """End processes that are not children of this one: by their kill signal, then by SIGKILL.

    Returns once all have ended, or `timeout_s` after each of the two signals.
    """
    for number in (None, signal.SIGKILL):
        for identity in identities:
            identity.signal(identity.kill_signal if number is None else number)
        until = time.monotonic() + timeout_s
        while any(identity.alive() for identity in identities):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        else:
            return
