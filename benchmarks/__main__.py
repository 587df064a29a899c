"""`python -m benchmarks [NAME …]`: run the benchmarks, print tables, keep the figures as JSON."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks.options import VERSES, Options
from benchmarks.report import Outcome, save, show
from workers.home import default_home

NAMES = (
    "embedding", "bulk", "round_trip", "picking", "backlog", "sealing", "search", "classification",
)  # fmt: skip
BUSY = 0.5
"""Load per core above which the figures are worth a warning."""


def main() -> None:
    """Run what was asked for, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3, help="of each side, taking turns")
    parser.add_argument("--share", type=float, default=1.0, help="of the full counts, 0 to 1")
    parser.add_argument("--threads", type=int, default=0, help="torch threads; 0: every core")
    parser.add_argument(
        "--texts",
        type=Path,
        default=os.environ.get("VESTRY_BENCH_TEXTS") or VERSES,
        help="a file of `REFERENCE text` lines to embed",
    )
    parser.add_argument("--json", type=Path, default=default_home() / "bench.json")
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options = Options(chosen.rounds, chosen.share, Path(chosen.texts), chosen.threads)
    # An ordinary exit, so that the stacks started here are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > BUSY:
        console.print(f"[yellow]This machine is busy (load {load:.1f} a core).[/]")
    outcomes: dict[str, Outcome] = {}
    for name in chosen.names or NAMES:
        run: Callable[[Options], Outcome] = import_module(f"benchmarks.{name}").run
        with console.status(name):
            outcomes[name] = run(options)
        show(outcomes[name], console)
        # After each, so that what was measured outlives a later failure.
        save(chosen.json, outcomes)
    console.print(f"Single rounds: {chosen.json}")


if __name__ == "__main__":
    main()
