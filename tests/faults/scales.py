"""Scales of the smoke test in `make test`, of `make faults` and of `make soak`; minimum counts."""

from __future__ import annotations

from dataclasses import dataclass

from tests.faults import forks, namespaces, real
from tests.faults.job_mix import FAULTY, KINDS
from tests.faults.real import OTHER_FAULTS
from tests.faults.stack_faults import INSTANT, LASTING

EVERY_FAULT = (*INSTANT, *LASTING, "the disk is full", "the network is silent")
"""The faults of servers, network and processes of a real stack."""


@dataclass(frozen=True, slots=True)
class Minimum:
    """The counts that a run must reach, over all laboratories.

    Attributes:
        committed: jobs.
        kills: SIGKILLs at named points.
        worker_kills: SIGKILLs of real workers.
        faults: faults of servers and network, by name; those of disk and network if root.
        zombies: workers frozen past their lease.
        forged: messages.
        bad_input: enqueues with bad input.
        poison: jobs that had to become dead.
        each_kind: jobs of each kind besides embedding.
    """

    committed: int
    kills: int
    worker_kills: int
    faults: dict[str, int]
    zombies: int
    forged: int
    bad_input: int
    poison: int
    each_kind: int


@dataclass(frozen=True, slots=True)
class Preset:
    """The scale of each laboratory, and their total minimum counts."""

    forks: forks.Scale
    real: real.Scale
    disk: forks.Scale
    network: namespaces.Scale
    minimum: Minimum | None = None


SMOKE = Preset(
    forks=forks.Scale(
        jobs=1000,
        jobs_per_s=33,
        kills=40,
        zombies=6,
        required={
            "raises": 2,
            "exits": 2,
            "segfaults": 2,
            "takes all memory": 1,
            "hangs": 1,
            **{variant.name: 2 for variant in FAULTY},
        },
        faults={
            "postgres restarts": 1,
            "the broker is emptied": 1,
            "the broker restarts empty": 1,
            "the broker hangs": 1,
            "sessions are ended": 1,
            "connections run out": 1,
            "a snapshot is held": 1,
            "messages are forged": 2,
        },
        workers=5,
        every_point=True,
    ),
    real=real.Scale(
        jobs=300,
        jobs_per_s=8,
        required={"raises": 1, "exits": 1, **{variant.name: 3 for variant in KINDS}},
        instant={
            "the supervisor is killed": 1,
            "the broker is emptied": 2,
            "messages are forged": 2,
            "sessions are ended": 1,
        },
        lasting=dict.fromkeys(LASTING, 1),
        longest_s={OTHER_FAULTS: 3.0, "the broker hangs": 4.0},
    ),
    disk=forks.Scale(
        jobs=100,
        jobs_per_s=25,
        kills=3,
        zombies=0,
        required={},
        faults={"the disk is full": 1},
        workers=3,
        producers=1,
    ),
    network=namespaces.Scale(jobs=80, jobs_per_s=15, outages=1),
    minimum=Minimum(
        committed=1500,
        kills=40,
        worker_kills=8,
        faults={
            "the broker is emptied": 3,
            "postgres restarts": 2,
            **dict.fromkeys(EVERY_FAULT, 1),
        },
        zombies=3,
        forged=300,
        bad_input=150,
        poison=15,
        each_kind=3,
    ),
)
"""Every fault and every named point at least once: part of `make test`, a minute and a half."""

FAULTS = Preset(
    forks=forks.Scale(
        jobs=3900,
        jobs_per_s=65,
        kills=200,
        zombies=24,
        required={
            "raises": 8,
            "exits": 8,
            "segfaults": 8,
            "takes all memory": 8,
            "hangs": 4,
            **{variant.name: 2 for variant in FAULTY},
        },
        faults={
            "postgres restarts": 2,
            "the broker is emptied": 4,
            "the broker restarts empty": 1,
            "the broker hangs": 1,
            "sessions are ended": 3,
            "connections run out": 1,
            "a snapshot is held": 1,
            "messages are forged": 4,
        },
        workers=5,
        every_point=True,
    ),
    real=real.Scale(
        jobs=1100,
        jobs_per_s=16,
        required={
            "raises": 2,
            "exits": 1,
            "segfaults": 1,
            "hangs": 1,
            # Enough of every kind, independent of the random choices.
            **{variant.name: 6 for variant in KINDS},
        },
        instant={
            "a worker is killed": 10,
            "the dispatcher is killed": 1,
            "the reconciler is killed": 1,
            "the supervisor is killed": 1,
            "postgres restarts": 2,
            "the broker restarts empty": 1,
            "the broker is emptied": 8,
            "messages are forged": 6,
            "sessions are ended": 1,
        },
        lasting={
            "the database is cut off": 1,
            "the database is half open": 1,
            "the database flaps": 1,
            "the broker is cut off": 1,
            "the broker is half open": 1,
            "the broker flaps": 1,
            "the network is cut": 1,
            "the broker hangs": 1,
            "a worker hangs": 1,
            "connections run out": 1,
            "a snapshot is held": 1,
        },
        longest_s={OTHER_FAULTS: 4.0, "the broker hangs": 6.0},
    ),
    disk=forks.Scale(
        jobs=300,
        jobs_per_s=25,
        kills=5,
        zombies=0,
        required={},
        faults={"the disk is full": 2},
        workers=3,
        producers=1,
    ),
    network=namespaces.Scale(jobs=200, jobs_per_s=15, outages=2),
    minimum=Minimum(
        committed=5000,
        kills=200,
        worker_kills=10,
        faults={
            **dict.fromkeys(EVERY_FAULT, 1),
            "the broker is emptied": 10,
            "postgres restarts": 2,
            "the disk is full": 2,
            "the network is silent": 2,
        },
        zombies=20,
        forged=1000,
        bad_input=500,
        poison=40,
        each_kind=5,
    ),
)


def soak(minutes: float) -> Preset:
    """A soak: two hours make 110,000 jobs, 2,400 kills at points and 130 of real workers."""

    def times(in_two_hours: float) -> int:
        return max(1, round(in_two_hours * minutes / 120))

    seconds = minutes * 60
    return Preset(
        forks=forks.Scale(
            jobs=round(11.0 * seconds),
            jobs_per_s=11.0,
            kills=times(2400),
            zombies=times(200),
            required={
                "raises": times(60),
                "exits": times(60),
                "segfaults": times(60),
                "takes all memory": times(60),
                "hangs": times(40),
                **{variant.name: times(20) for variant in FAULTY},
            },
            faults={
                "postgres restarts": times(20),
                "the broker is emptied": times(60),
                "the broker restarts empty": times(20),
                "the broker hangs": times(20),
                "sessions are ended": times(60),
                "connections run out": times(20),
                "a snapshot is held": times(20),
                "messages are forged": times(60),
            },
            workers=3,
            keep_jobs_s=300.0,
        ),
        real=real.Scale(
            jobs=round(4.0 * seconds),
            jobs_per_s=4.0,
            required={
                "raises": times(20),
                "exits": times(15),
                "segfaults": times(15),
                "hangs": times(15),
            },
            instant={
                "a worker is killed": times(130),
                "the dispatcher is killed": times(20),
                "the reconciler is killed": times(20),
                "the supervisor is killed": times(8),
                "postgres restarts": times(20),
                "the broker restarts empty": times(20),
                "the broker is emptied": times(60),
                "messages are forged": times(40),
                "sessions are ended": times(30),
            },
            lasting={
                "the database is cut off": times(20),
                "the database is half open": times(20),
                "the database flaps": times(20),
                "the broker is cut off": times(20),
                "the broker is half open": times(20),
                "the broker flaps": times(20),
                "the network is cut": times(20),
                "the broker hangs": times(15),
                "a worker hangs": times(20),
                "connections run out": times(10),
                "a snapshot is held": times(8),
            },
            longest_s={
                OTHER_FAULTS: min(12.0, seconds / 20),
                "the broker hangs": min(90.0, seconds / 20),
                "a snapshot is held": min(240.0, seconds / 10),
            },
            keep_jobs_s=300.0,
        ),
        disk=forks.Scale(
            jobs=times(3000),
            jobs_per_s=10,
            kills=times(50),
            zombies=0,
            required={},
            faults={"the disk is full": times(20)},
            workers=2,
            producers=1,
            keep_jobs_s=60.0,
        ),
        network=namespaces.Scale(jobs=times(3000), jobs_per_s=6, outages=times(40)),
    )
