"""`python -m tests.faults`: enqueue, kill, check. One seed decides every choice that is made here.

What the processes do between two choices is up to the machine: a seed repeats the faults and the load,
not the interleaving.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys

from tests.faults.forks import Laboratory, Scale
from tests.faults.servers import LabStack
from tests.homes import temporary_home


def main() -> int:
    """Run once; prints the report as JSON. 0 if nothing was lost and nothing done twice."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    options = parser.parse_args()
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    scale = Scale(
        jobs=1500,
        a_second=75,
        kills=60,
        zombies=5,
        poison={"raises": 3, "exits": 2, "segfaults": 2, "takes all memory": 2, "hangs": 2},
        mishaps={
            "postgres restarts": 1,
            "broker is emptied": 2,
            "broker restarts empty": 1,
            "broker hangs": 1,
            "sessions are ended": 2,
            "connections run out": 1,
            "a snapshot is held": 1,
            "messages are forged": 2,
        },
    )
    with temporary_home("vestry-faults-") as home, LabStack(home) as stack:
        report = Laboratory(stack, options.seed, scale).run()
    print(json.dumps(report.document(), indent=1, default=str))
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
