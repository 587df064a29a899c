"""The guardian: ends the stack's processes if the supervisor has ended without ending them.

It reads one JSON object per line from a pipe that only the supervisor holds open, and keeps a register:
`{"add": …}`, an `Identity`, adds a process, `{"remove": pid}` removes it. The end of the pipe means
that the supervisor has ended, in any way. This needs no signal and no parent id, and works on every
Unix.
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
"""Time for each process's own kill signal before SIGKILL. Twice this is below the five seconds in which
all processes must have ended."""


def main() -> None:
    """Keep the register until the pipe ends, then end the registered processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    register: dict[int, Identity] = {}
    for line in sys.stdin:
        message = json.loads(line)
        if identity := message.get("add"):
            register[identity["pid"]] = Identity(**identity)
        else:
            register.pop(message["remove"], None)
    end_all(list(register.values()), TERMINATION_TIMEOUT_S)


class OrphanGuardian:
    """The guardian's process, and the supervisor's end of its pipe.

    Args:
        home: for its log.
    """

    def __init__(self, home: Home) -> None:
        self._command = Command(
            argv=[sys.executable, "-m", "workers.stack.guardian"],
            log=home.logs / "guardian.log",
            environment=base_environment(),
            cwd=CHECKOUT,
        )
        self._register: dict[int, Identity] = {}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int | None:
        """The guardian's process id."""
        return self._process.pid if self._process else None

    def ensure(self) -> bool:
        """Start it if it does not run, and send it the whole register.

        Returns:
            Whether an earlier one has ended.
        """
        if self._process is not None and self._process.poll() is None:
            return False
        replaced = self._process is not None
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
        for identity in self._register.values():
            self._send({"add": asdict(identity)})
        return replaced

    def add(self, identity: Identity) -> None:
        """Register a process."""
        self._register[identity.pid] = identity
        self._send({"add": asdict(identity)})

    def remove(self, pid: int) -> None:
        """Remove a process that has ended."""
        if self._register.pop(pid, None):
            self._send({"remove": pid})

    def close(self) -> None:
        """End the guardian, and with it all registered processes."""
        if self._process is not None:
            with contextlib.suppress(OSError):
                self._pipe().close()
            self._process.wait()

    def _send(self, message: dict[str, object]) -> None:
        # `ensure` replaces a guardian that has ended, and sends the whole register.
        with contextlib.suppress(OSError):
            self._pipe().write(json.dumps(message) + "\n")
            self._pipe().flush()

    def _pipe(self) -> IO[str]:
        if self._process is None or self._process.stdin is None:
            raise BrokenPipeError
        return self._process.stdin


if __name__ == "__main__":
    main()
