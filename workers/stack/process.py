"""Starting and ending operating-system processes with an environment built from nothing."""

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
"""All that a child gets of its parent's environment: where things are, never what opens them."""

LOG_LIMIT = 16 * 1024 * 1024
"""Bytes after which a log is put aside at the next start, in place of the one put aside before."""


SAME_START_S = 2.0
"""Start times this close are one process's: an id comes round again much later. Linux says when it
booted in whole seconds, and may say another one the next time."""


BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
"""Linux's name of this boot (random(4))."""


@dataclass(frozen=True, slots=True)
class Account:
    """Whom a server runs as. None of both: as whoever starts it."""

    uid: int | None = None
    gid: int | None = None
    views: Mapping[Path, Sequence[Path]] = field(default_factory=dict, compare=False)
    """Directories it may not traverse, and what it needs below each: see `mount_namespace`."""

    def run(self, argv: Sequence[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end as this account, in a minimal environment, from "/"."""
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
        """User and group, where they are not the caller's."""
        return None if self.uid is None or self.gid is None else (self.uid, self.gid)

    def own(self, path: Path) -> None:
        """Give a path to this account, in a directory that nobody else may change."""
        if self.ids is not None:
            os.chown(path, *self.ids)

    def can_enter(self, path: Path) -> bool:
        """Whether this account can reach a directory: every parent may forbid it."""
        if self.uid is None:
            return True
        argv = ["/bin/sh", "-c", 'cd "$1"', "sh", str(path)]
        return self.run(argv, stderr=subprocess.DEVNULL).returncode == 0

    def popen_options(self) -> dict[str, object]:
        """What `subprocess.Popen` is told to become this account."""
        if self.uid is None or self.gid is None:
            return {}
        if self.views:
            # By hand: the view must be made while it is still root.
            return {"preexec_fn": partial(_become, self.uid, self.gid, self.views)}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}


def _become(uid: int, gid: int, views: Mapping[Path, Sequence[Path]]) -> None:
    here = Path.cwd()
    mount_namespace.bind_views(views)
    os.chdir(here)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def server_account(data: Path) -> Account:
    """Whom the servers run as: root's run as an unprivileged account, as Postgres insists.

    Args:
        data: the data directory; where it belongs to somebody already, that account is kept.
    """
    if os.geteuid() != 0:
        return Account()
    if data.exists() and (status := data.stat()).st_uid != 0:
        return Account(status.st_uid, status.st_gid)
    for name in ("nobody", "daemon"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return Account(entry.pw_uid, entry.pw_gid)
    raise OSError("no unprivileged account (nobody, daemon) to run the servers as")


def base_environment() -> dict[str, str]:
    """What every child gets: a path, a locale, and the harmless few of INHERITED."""
    environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
    venv = str(Path(sys.executable).parent)
    environment["PATH"] = f"{venv}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
    environment["LANG"] = "C.UTF-8"
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


@dataclass(frozen=True, slots=True)
class Command:
    """A process to run: `environment` is all it gets."""

    argv: Sequence[str]
    log: Path
    environment: Mapping[str, str] = field(default_factory=base_environment)
    account: Account = field(default_factory=Account)
    cwd: Path = Path("/")
    nice: int = 0
    pass_fds: tuple[int, ...] = ()
    """Descriptors it inherits, under the same numbers."""
    stop_signal: signal.Signals = signal.SIGTERM
    """Asks for an orderly end."""
    kill_signal: signal.Signals = signal.SIGKILL
    """Ends it at once, without ruin: Postgres takes SIGQUIT, so that its backends end with it."""


def spawn(command: Command) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, its output appended to its 0600 log.

    A session of its own, so that a terminal's Ctrl-C reaches the supervisor alone.
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
    """Open a 0600 log to append to, putting it aside first where it has grown long."""
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def stop(process: subprocess.Popen[bytes], command: Command, grace_s: float = 15.0) -> None:
    """End a child in order, or after `grace_s` at once."""
    for number, patience in ((command.stop_signal, grace_s), (command.kill_signal, 5.0)):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
            return
    process.kill()
    process.wait()


@dataclass(frozen=True, slots=True)
class Identity:
    """A process for certain: its id may be another's tomorrow, but not with this start time.

    Attributes:
        pid: its id.
        started: seconds from the boot, by a clock that nobody sets; where the system does not tell
            that, seconds since the epoch as of then.
        kill_signal: what ends it at once.
        boot: which boot; empty where the system gives it no name.
    """

    pid: int
    started: float
    kill_signal: int = signal.SIGKILL
    boot: str = ""

    @classmethod
    def of(cls, pid: int, kill_signal: int = signal.SIGKILL) -> Identity | None:
        """The process with an id now; None where there is none."""
        try:
            return cls(pid, _started(psutil.Process(pid)), kill_signal, _boot())
        except psutil.Error:
            return None

    def alive(self) -> bool:
        """Whether it still runs; a zombie does not."""
        try:
            process = psutil.Process(self.pid)
            same = abs(_started(process) - self.started) < SAME_START_S and self.boot == _boot()
            return bool(same and process.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def signal(self, number: int) -> None:
        """Signal its process group (it leads one), if it is still itself."""
        if self.alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)


def _started(process: psutil.Process) -> float:
    """A wall clock that is set moves every start time with it; on Linux that of the boot, too."""
    at = float(process.create_time())
    return at - float(psutil.boot_time()) if psutil.LINUX else at


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def end_all(identities: Sequence[Identity], patience_s: float = 2.0) -> None:
    """End processes that are not our children: by their own kill signal, then by SIGKILL.

    Takes at most `patience_s` and a little; returns once none is left, or nothing more can be done.
    """
    for number in (None, signal.SIGKILL):
        for identity in identities:
            identity.signal(identity.kill_signal if number is None else number)
        until = time.monotonic() + patience_s
        while any(identity.alive() for identity in identities):
            if time.monotonic() > until:
                break
            time.sleep(0.02)
        else:
            return
