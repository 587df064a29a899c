"""Named failpoints: points at which a test kills, freezes or fails a process.

The code calls `failpoint(NAME, …)` at each point. Without callbacks, as always outside tests, a call
costs about 50 ns. A test installs callbacks by name: each gets its failpoint's arguments, and may
raise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

AFTER_CLAIM_COMMIT: Final = "after claim COMMIT"
"""(connection, lease): a claim is committed; the worker has not read its payloads yet."""
AFTER_CLAIM: Final = "after claim"
"""(lease): a batch is claimed and its payloads are read."""
AFTER_INFERENCE: Final = "after inference"
"""(lease): the handler has returned; nothing of it is stored."""
INSIDE_FINISH: Final = "inside finish transaction"
"""(lease, finished): everything is written, nothing committed."""
BEFORE_FINISH_COMMIT: Final = "before finish COMMIT"
"""(connection): COMMIT is next."""
AFTER_FINISH_COMMIT: Final = "after finish COMMIT"
"""(connection): committed; the worker has not left the transaction's block."""
AFTER_FINISH: Final = "after finish"
"""(lease): the connection is back in its pool."""
AFTER_HEARTBEAT: Final = "after heartbeat"
"""(leases): they are extended."""
INSIDE_RESCUE: Final = "inside rescue transaction"
"""(rescued): a reconciler's round has moved these counts of jobs, but not committed."""
AFTER_RESCUE: Final = "after rescue"
"""(rescued): the same, committed."""
AFTER_HINT_STAMP: Final = "after hint stamp"
"""(job ids): jobs are stamped as hinted, no hint is published."""
AFTER_PUBLISH: Final = "after publish"
"""(job ids): their hints are published."""

NAMES: Final = frozenset({
    AFTER_CLAIM_COMMIT, AFTER_CLAIM, AFTER_INFERENCE, INSIDE_FINISH, BEFORE_FINISH_COMMIT,
    AFTER_FINISH_COMMIT, AFTER_FINISH, AFTER_HEARTBEAT, INSIDE_RESCUE, AFTER_RESCUE,
    AFTER_HINT_STAMP, AFTER_PUBLISH,
})  # fmt: skip

Callback = Callable[..., object]

_callbacks: dict[str, Callback] = {}


def failpoint(name: str, *arguments: Any) -> None:
    """Run the callback that is installed for a failpoint, if any."""
    if _callbacks and (callback := _callbacks.get(name)) is not None:
        callback(*arguments)


def install(callbacks: Mapping[str, Callback]) -> None:
    """Install callbacks for the rest of the process.

    Raises:
        ValueError: there is no failpoint of that name.
    """
    if unknown := callbacks.keys() - NAMES:
        raise ValueError(f"there is no failpoint {min(unknown)!r}; there are: {sorted(NAMES)}")
    _callbacks.update(callbacks)


@contextmanager
def installed(callbacks: Mapping[str, Callback]) -> Iterator[None]:
    """Install callbacks for a block, and restore the earlier ones after it."""
    earlier = dict(_callbacks)
    install(callbacks)
    try:
        yield
    finally:
        _callbacks.clear()
        _callbacks.update(earlier)
