"""Measures that must not grow without bound: rows, connections, memory, open files, logs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import psutil
import psycopg

MIB: Final = 1024 * 1024
SHARE: Final = 5
"""The first and the last fifth of the samples are compared."""
FACTOR: Final = 1.5
"""The last may be this many times the first, plus ALLOWANCE."""
ALLOWANCE: Final = {
    "rows": 20_000.0, "connections": 30.0, "memory_mib": 150.0, "open_files": 60.0,
    "logs_mib": 200.0, "processes": 3.0,
}  # fmt: skip
_ROWS: Final = """SELECT coalesce(sum(n), 0) FROM (
  SELECT count(*) AS n FROM vestry.jobs UNION ALL SELECT count(*) FROM vestry.leases
  UNION ALL SELECT count(*) FROM vestry.receipts UNION ALL SELECT count(*) FROM vestry.job_documents
  UNION ALL SELECT count(*) FROM vestry.idempotency_keys
  UNION ALL SELECT count(*) FROM vestry.private_payloads
  UNION ALL SELECT count(*) FROM vestry.shareable_payloads
  UNION ALL SELECT count(*) FROM vestry.private_results
  UNION ALL SELECT count(*) FROM vestry.shareable_results) t"""


@dataclass(slots=True)
class Growth:
    """Samples of one run.

    Args:
        superuser_url: of its Postgres.
        logs: directory of its processes' logs.
        keep_s: how long finished jobs are kept.
    """

    superuser_url: str
    logs: Path
    keep_s: float
    samples: list[dict[str, float]] = field(default_factory=list)

    def sample(self, processes: Iterable[int]) -> None:
        """Measure once; skipped while the database is unavailable.

        Args:
            processes: ids of the system's processes.
        """
        try:
            with psycopg.connect(self.superuser_url, autocommit=True, connect_timeout=2) as conn:
                rows = conn.execute(_ROWS).fetchone()
                sessions = conn.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'vestry%'"
                ).fetchone()
        except psycopg.Error:
            return
        assert rows is not None
        assert sessions is not None
        memory, files, alive = 0, 0, 0
        for pid in processes:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                memory += process.memory_info().rss
                files += process.num_fds()
                alive += 1
        self.samples.append(
            {
                "at_s": time.monotonic(),
                "rows": float(rows[0]),
                "connections": float(sessions[0]),
                "memory_mib": memory / MIB,
                "open_files": float(files),
                "processes": float(alive),
                "logs_mib": sum(map(_size, self.logs.glob("*"))) / MIB,
            }
        )

    def as_dict(self) -> dict[str, Any]:
        """First, last and largest value of each measure."""
        if len(self.samples) < 2 * SHARE:
            return {}
        part = len(self.samples) // SHARE
        first, last = self.samples[:part], self.samples[-part:]
        return {
            name: {
                "first": round(median(sample[name] for sample in first), 1),
                "last": round(median(sample[name] for sample in last), 1),
                "most": round(max(sample[name] for sample in self.samples), 1),
            }
            for name in ALLOWANCE
        }

    def _lasted_s(self) -> float:
        return self.samples[-1]["at_s"] - self.samples[0]["at_s"]

    def excessive(self) -> list[str]:
        """The measures that grew by more than allowed."""
        return [
            name
            for name, values in self.as_dict().items()
            # Rows are pruned only in runs much longer than they are kept.
            if (name != "rows" or self._lasted_s() > 3 * self.keep_s)
            and values["last"] > FACTOR * values["first"] + ALLOWANCE[name]
        ]


def _size(path: Path) -> int:
    """Bytes; 0 for a log that was just rotated."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
