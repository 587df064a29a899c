"""`python -m benchmarks [NAME …]`: run benchmarks, print tables, write the figures as JSON."""

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
from benchmarks.report import BenchmarkResult, save, show
from workers.home import default_home

NAMES = (
    "embedding", "bulk", "round_trip", "claim", "backlog", "sealing", "search", "classification",
)  # fmt: skip
BUSY_LOAD = 0.5
"""Load per core above which a warning is printed."""


def main() -> None:
    """Run the benchmarks named on the command line, by default all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds of each side")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full counts, 0 to 1")
    parser.add_argument(
        "--threads", type=int, default=0, help="torch threads; 0: the workers' default"
    )
    parser.add_argument(
        "--texts",
        type=Path,
        default=os.environ.get("VESTRY_BENCH_TEXTS") or VERSES,
        help="a file of `REFERENCE text` lines to embed",
    )
    parser.add_argument("--json", type=Path, default=default_home() / "bench.json")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    options = Options(arguments.rounds, arguments.share, Path(arguments.texts), arguments.threads)
    # Exit in order on SIGTERM, so that the stacks started here are stopped.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console()
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    if load > BUSY_LOAD:
        console.print(f"[yellow]This machine is busy (load {load:.1f} per core).[/]")
    results: dict[str, BenchmarkResult] = {}
    for name in arguments.names or NAMES:
        run: Callable[[Options], BenchmarkResult] = import_module(f"benchmarks.{name}").run
        with console.status(name):
            results[name] = run(options)
        show(results[name], console)
        # After each benchmark, so that a later failure does not lose its figures.
        save(arguments.json, results)
    console.print(f"Figures of every round: {arguments.json}")


if __name__ == "__main__":
    main()
