"""`make mutations`: remove one mechanism at a time, and check that the laboratory reports violations.

Each mechanism is removed from the running code of the laboratory's processes, or from its database; no
file is changed. Where a second mechanism alone would prevent the violation, it is removed too, and the
table says so.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import Any, Final
from uuid import UUID

import psycopg

from models import documents, transitions
from models.sql import QUERIES
from tests.faults import failpoints
from tests.faults.forks import UNEXPECTED_ERROR, Laboratory, Scale
from tests.faults.servers import LabStack
from tests.temp_stack_dir import temporary_home
from workers import dispatcher
from workers.home import CHECKOUT

DEFAULT_SCALE: Final = Scale(
    jobs=700,
    jobs_per_s=90,
    kills=25,
    zombies=5,
    required={"exits": 2},
    faults={"the broker is emptied": 3},
    workers=5,
    progress_s=12.0,
)
"""Large enough to detect most missing mechanisms."""
HINTS_ONLY: Final = replace(
    DEFAULT_SCALE, hints_only=True, required={}, kills=5, faults={"the broker is emptied": 8}
)
NO_POINT: Final = ("nowhere",)
"""No worker is killed."""
SHOWN: Final = 3
LOST_JOB: Final = "a committed job is lost"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One mechanism, and how it is removed.

    Attributes:
        how: description of the removal.
        expects: parts of violation texts; one must be reported, others prove nothing.
        code: changes functions of this process, before it forks.
        sql: changes the laboratory's database.
        scale: for mutations that DEFAULT_SCALE does not detect.
    """

    name: str
    how: str
    expects: tuple[str, ...] = ()
    code: Callable[[], object] = lambda: None
    sql: str = ""
    scale: Scale = field(default=DEFAULT_SCALE)


def rewrite(module: ModuleType, name: str, *changes: tuple[str, str]) -> None:
    """Replace text in a module's function; each old text must occur once."""
    text = textwrap.dedent(inspect.getsource(getattr(module, name)))
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{name} must contain once: {old}")
        text = text.replace(old, new)
    exec(compile(text, f"<{name}, mutated>", "exec"), vars(module))  # noqa: S102 - the repository's own text


def rewrite_query(name: str, *changes: tuple[str, str]) -> None:
    """Replace text in a named statement; each old text must occur once."""
    text = QUERIES[name]
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{name} must contain once: {old}")
        text = text.replace(old, new)
    QUERIES[name] = text


HELD: Final = "AND lease_id = %(token)s AND state = 'running'"
SETTLED: Final = "AND j.lease_id = %(token)s AND j.state = 'running'"


def _no_token() -> None:
    rewrite(transitions, "lock_held", (HELD, "AND state = 'running'"))
    rewrite_query("settle", (SETTLED, "AND j.state = 'running'"))


def _no_state() -> None:
    rewrite(transitions, "lock_held", (HELD, "AND lease_id = %(token)s"))
    rewrite_query("settle", (SETTLED, "AND j.lease_id = %(token)s"))


def _no_generation() -> None:
    locked = "return pairs & frozenset((row[0], row[1]) for row in rows)"
    rewrite(documents, "lock_current", (locked, "return pairs"))
    current = "coalesce(d.generation = jd.generation AND NOT d.deleted, false)"
    rewrite(documents, "read_states", (current, "true"))


def _no_order() -> None:
    def lock_held(
        conn: Any,
        token: UUID,
        job_ids: Sequence[UUID],
        *,
        owners: Iterable[str],
        flows: bool = False,
    ) -> frozenset[UUID]:
        del owners, flows
        conn.execute("SELECT FROM vestry.leases WHERE id = %s FOR UPDATE", [token])
        lock_one = """SELECT id FROM vestry.jobs
                 WHERE id = %s AND lease_id = %s AND state = 'running' FOR UPDATE"""
        held = set()
        for job in random.sample(job_ids, len(job_ids)):
            # Simulates a busy machine: another process can interfere between two locks.
            time.sleep(0.002)
            held |= {row[0] for row in conn.execute(lock_one, [job, token])}
        return frozenset(held)

    # A wrong signature would cause violations for another reason.
    original = inspect.signature(transitions.lock_held).parameters
    assert inspect.signature(lock_held).parameters.keys() == original.keys()
    transitions.lock_held = lock_held  # type: ignore[assignment]


def _no_refill() -> None:
    dispatcher.REHINT_S = dispatcher.REHINT_EMPTY_S = 3600.0  # type: ignore[misc]


def _quick_refill() -> None:
    dispatcher.REHINT_S = 2.0  # type: ignore[misc]


_CANCEL_KEEPS_LEASE: Final = """
DO $do$
DECLARE v_text text := pg_get_functiondef('vestry.cancel_jobs_v1(uuid[])'::regprocedure);
BEGIN
  EXECUTE replace(v_text, 'start_tag = NULL, lease_id = NULL', 'start_tag = NULL');
END $do$;
ALTER TABLE vestry.jobs DROP CONSTRAINT jobs_check1;
DROP TRIGGER jobs_transition ON vestry.jobs;
"""

CONTROL: Final = (
    Mutation("nothing", "no mechanism is removed"),
    Mutation(
        "nothing, hints only",
        "no mechanism is removed; workers do not poll",
        code=_quick_refill,
        scale=HINTS_ONLY,
    ),
)
"""Must stay green, or a red mutation would prove nothing."""

MUTATIONS: Final = (
    Mutation(
        "the token predicate",
        "finish checks the state alone, not the token",
        ("a worker that did not hold it", "that did not hold the job"),
        _no_token,
        scale=replace(
            DEFAULT_SCALE, zombies=15, kills=0, points=(failpoints.FROZEN, failpoints.AFTER_CLAIM)
        ),
    ),
    Mutation(
        "the state predicate",
        "finish checks the token alone, and cancel keeps the job's token; the constraint that ties "
        "the two together and the guard on transitions, which would refuse it, are removed too",
        ("left a final state", "that did not hold the job", "ended more than once"),
        _no_state,
        _CANCEL_KEEPS_LEASE,
        replace(DEFAULT_SCALE, cancels=0.2),
    ),
    Mutation(
        "the crash count",
        "rescue does not count the crash of an exclusive run",
        ("more attempts than allowed (lost in exclusive runs)",),
        lambda: rewrite_query(
            "rescue", ("crashes = j.crashes + held.exclusive::int", "crashes = j.crashes")
        ),
    ),
    Mutation(
        "the quarantine rule",
        "rescue queues a batch again without quarantine",
        (LOST_JOB,),
        lambda: rewrite_query("rescue", ("quarantined = NOT held.dies", "quarantined = false")),
    ),
    Mutation(
        "the generation check",
        "a document is written without a check for newer versions and deletions, before and after",
        ("generation was indexed more than once", "a deleted document is still stored"),
        _no_generation,
        scale=replace(DEFAULT_SCALE, jobs=1500),
    ),
    Mutation(
        "the reconciler",
        "expired leases are not rescued",
        (LOST_JOB,),
        scale=replace(DEFAULT_SCALE, missing="reconciler"),
    ),
    Mutation(
        "the hint refill",
        "a hint is published once; workers do not poll",
        (LOST_JOB,),
        _no_refill,
        scale=HINTS_ONLY,
    ),
    Mutation(
        "the unique index",
        "idempotency keys are stored without a unique index",
        ("one key made several jobs",),
        sql="ALTER TABLE vestry.idempotency_keys DROP CONSTRAINT idempotency_keys_pkey",
    ),
    Mutation(
        "the lock order",
        "finish locks a batch's jobs one after the other, in random order",
        ("deadlocked", "SQLSTATE 40P01"),
        _no_order,
        scale=replace(
            DEFAULT_SCALE,
            jobs=5000,
            jobs_per_s=150,
            kills=0,
            zombies=0,
            producers=3,
            cancels=0.8,
            points=NO_POINT,
        ),
    ),
)
ALL: Final = {mutation.name: mutation for mutation in (*CONTROL, *MUTATIONS)}


class Mutated(Laboratory):
    """A laboratory whose database is mutated."""

    sql = ""

    def prepare(self) -> None:
        """Apply the mutation's SQL."""
        if self.sql:
            with psycopg.connect(self.stack.superuser_url, autocommit=True) as conn:
                conn.execute(self.sql.encode())


def run(mutation: Mutation, seed: int) -> dict[str, Any]:
    """Run one laboratory without the mechanism. It changes the process: use one process for each."""
    mutation.code()
    with temporary_home("vestry-faults-") as home, LabStack(home) as stack:
        laboratory = Mutated(stack, seed, mutation.scale)
        laboratory.sql = mutation.sql
        return laboratory.run().as_dict()


def main() -> int:
    """Run each; 0 if every mutation was detected and no violation was reported without one."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.mutations", description=__doc__)
    parser.add_argument("--seed", type=int, default=20261126)
    parser.add_argument("--only", choices=[*ALL])
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.only is not None:
        print(json.dumps(run(ALL[options.only], options.seed), default=str))
        return 0
    failures = 0
    print(f"seed {options.seed}\n")
    for mutation in (*CONTROL, *MUTATIONS):
        argv = [sys.executable, "-m", "tests.faults.mutations", f"--only={mutation.name}"]
        completed = subprocess.run(
            [*argv, f"--seed={options.seed}"],
            cwd=CHECKOUT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        failed = {"violations": {"the laboratory failed": [completed.stderr[-2000:]]}}
        output = json.loads(completed.stdout) if completed.stdout else failed
        violations = output["violations"]
        control = mutation in CONTROL
        detected = any(expected in kind for kind in violations for expected in mutation.expects)
        failures += (
            control == detected
            or (control and bool(violations))
            or any(UNEXPECTED_ERROR in kind for kind in violations)
        )
        color = "RED" if violations else "green"
        print(f"without {mutation.name}: {color}\n  {mutation.how}", flush=True)
        for kind, examples in list(violations.items())[:SHOWN]:
            print(f"  -> {kind}: {examples[0]}", flush=True)
    print(f"\n{f'{failures} were not detected' if failures else 'each was detected'}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
