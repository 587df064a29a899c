"""`python -m tests.faults`: enqueue jobs, inject faults, check the guarantees.

One seed determines every choice: it repeats the faults and the load, not the interleaving of processes.
Four laboratories run, two at a time, each in its own process: forks, killed by the hundred; the real
stack; a disk that fills up; a network that drops every packet.
"""

from __future__ import annotations

import argparse
import json
import secrets
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.cluster_template import copy_cluster
from tests.faults import disk, forks, namespaces, real, scales
from tests.faults.aggregate import as_text, merge, shortfalls
from tests.faults.report import Report
from tests.faults.scales import Preset
from tests.faults.servers import LabStack
from tests.temp_stack_dir import temporary_home
from workers.home import CHECKOUT

PARALLEL_LABORATORIES: Final = 2
PREFIX: Final = "vestry-faults-"
FAILED: Final = "the laboratory itself failed"


def _forks(home: Path, seed: int, preset: Preset) -> Report:
    copy_cluster(home)
    with LabStack(home) as stack:
        return forks.Laboratory(stack, seed, preset.forks).run()


def _real(home: Path, seed: int, preset: Preset) -> Report:
    copy_cluster(home)
    return real.Laboratory(home, seed, preset.real).run()


def _disk(home: Path, seed: int, preset: Preset) -> Report:
    with disk.small_disk(home) as mounted:
        if not mounted:
            return Report("disk", seed, notes=["no small file system can be mounted here"])
        copy_cluster(home)
        with LabStack(home) as stack:
            lab = forks.Laboratory(stack, seed, preset.disk, "disk", disk.DiskFaults)
            return lab.run()


def _network(home: Path, seed: int, preset: Preset) -> Report:
    copy_cluster(home)
    with LabStack(home) as stack:
        return namespaces.Laboratory(stack, seed, preset.network).run()


LABORATORIES: Final[dict[str, Callable[[Path, int, Preset], Report]]] = {
    "real": _real,
    "forks": _forks,
    "disk": _disk,
    "network": _network,
}
"""Longest first."""


def main() -> int:
    """Run once and print the report as JSON; 0 if every guarantee held and every count was reached."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="duration of a soak")
    parser.add_argument("--smoke", action="store_true", help="run every fault once")
    parser.add_argument("--only", choices=[*LABORATORIES], help="one laboratory, in this process")
    parser.add_argument(
        "--report", type=Path, help="also write the report here, as JSON and as text"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.only is not None:
        report = _run_one(options.only, options.seed, _preset(options)).as_dict()
        print(json.dumps(report, default=str))
        return 1 if report["violations"] else 0
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    report = _run_all(options)
    print(as_text(report), file=sys.stderr, flush=True)
    text = json.dumps(report, indent=1, default=str)
    if options.report is not None:
        options.report.write_text(text + "\n", encoding="utf-8")
        options.report.with_suffix(".txt").write_text(as_text(report) + "\n", encoding="utf-8")
    print(text)
    return 1 if report["violations"] or report["shortfalls"] else 0


def _preset(options: argparse.Namespace) -> Preset:
    if options.soak is not None:
        return scales.soak(options.soak)
    return scales.SMOKE if options.smoke else scales.FAULTS


def _run_one(name: str, seed: int, preset: Preset) -> Report:
    """Run one laboratory; a failure of the laboratory itself is a violation."""
    report = Report(name, seed)
    try:
        with temporary_home(PREFIX) as home:
            report = LABORATORIES[name](home, seed, preset)
    except Exception as error:
        trace = "".join(traceback.format_exception(error))
        print(trace, file=sys.stderr, flush=True)
        report.violations[FAILED] = [trace]
    return report


def _run_all(options: argparse.Namespace) -> dict[str, Any]:
    began = time.monotonic()
    waiting, running = list(LABORATORIES), dict[str, subprocess.Popen[str]]()
    reports: dict[str, dict[str, Any]] = {}
    # Each laboratory of a soak lasts as long as the soak: all run at the same time.
    limit = PARALLEL_LABORATORIES if options.soak is None else len(waiting)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        try:
            while waiting or running:
                while waiting and len(running) < limit:
                    name = waiting.pop(0)
                    running[name] = _start(name, options, Path(directory) / name)
                for name, process in list(running.items()):
                    if process.poll() is not None:
                        reports[name] = _read_report(
                            name, running.pop(name), Path(directory) / name
                        )
                time.sleep(0.1)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.wait()
    report = merge(options.seed, time.monotonic() - began, reports)
    minimum = _preset(options).minimum
    report["shortfalls"] = shortfalls(report, minimum, forks.EVERY_POINT) if minimum else []
    return report


def _start(name: str, options: argparse.Namespace, out: Path) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "tests.faults", f"--seed={options.seed}", f"--only={name}"]
    if options.soak is not None:
        argv.append(f"--soak={options.soak}")
    if options.smoke:
        argv.append("--smoke")
    # To a file: a report is longer than a pipe's buffer.
    with out.open("w", encoding="utf-8") as file:
        return subprocess.Popen(argv, cwd=CHECKOUT, stdout=file, text=True)


def _read_report(name: str, process: subprocess.Popen[str], out: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    except ValueError:
        report = Report(name, 0).as_dict()
        report["violations"] = {FAILED: [f"exit {process.returncode}"]}
    return report


if __name__ == "__main__":
    sys.exit(main())
