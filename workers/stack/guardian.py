"""The keeper: ends the stack's processes when the supervisor is gone without having ended them.

It reads one JSON object a line from a pipe that the supervisor alone holds open, and keeps a
register: `{"keep": …}`, an `Identity`, adds a process, `{"forget": pid}` removes it.
The end of the pipe means that the supervisor ended, however it did: no signal or parent id is
needed, so this holds on every Unix.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from dataclasses import asdict
from typing import IO

from workers.home import CHECKOUT, Home
from workers.stack.process import Command, Identity, base_environment, end_all, open_log

TERMINATION_TIMEOUT_S = 1.5
"""For a process's own kill signal before SIGKILL. Twice this stays below the five seconds in which
everything is to be gone."""


def main() -> None:
    """Keep until the pipe ends, then end whatever is still registered."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    register: dict[int, Identity] = {}
    for line in sys.stdin:
        message = json.loads(line)
        if kept := message.get("keep"):
            register[kept["pid"]] = Identity(**kept)
        else:
            register.pop(message["forget"], None)
    end_all(list(register.values()), TERMINATION_TIMEOUT_S)


class OrphanGuardian:
    """The supervisor's end of the pipe.

    Args:
        home: where the keeper's log goes.
    """

    def __init__(self, home: Home) -> None:
        self._command = Command(
            argv=[sys.executable, "-m", "workers.stack.guardian"],
            log=home.logs / "keeper.log",
            environment=base_environment(),
            cwd=CHECKOUT,
        )
        self._kept: dict[int, Identity] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The keeper's process id."""
        return self._process.pid if self._process else None

    def ensure(self) -> bool:
        """Start it where it does not run, and tell it everything again.

        Returns:
            Whether one had died.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        died = self._process is not None
        with open_log(self._command.log) as log:
            self._process = subprocess.Popen(
                self._command.argv,
                env=dict(self._command.environment),
                cwd=self._command.cwd,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                text=True,
            )
        for identity in self._kept.values():
            self._send({"keep": asdict(identity)})
        return died

    def keep(self, identity: Identity) -> None:
        """Register a process."""
        self._kept[identity.pid] = identity
        self._send({"keep": asdict(identity)})

    def forget(self, pid: int) -> None:
        """Take a process that has ended off the register."""
        if self._kept.pop(pid, None):
            self._send({"forget": pid})

    def close(self) -> None:
        """End the keeper, and with it whatever is still registered."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._pipe().close()
            self._process.wait()

    def _send(self, message: dict[str, object]) -> None:
        # A dead keeper is noticed, replaced and told everything by `ensure`.
        with contextlib.suppress(OSError):
            self._pipe().write(json.dumps(message) + "\n")
            self._pipe().flush()

    def _pipe(self) -> IO[str]:
        if self._process is None or self._process.stdin is None:
            raise BrokenPipeError
        return self._process.stdin


if __name__ == "__main__":
    main()
