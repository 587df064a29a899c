"""`python -m workers.worker`: a Celery worker for the lanes in VESTRY_LANES.

Equal to `celery -A workers.app worker -Q LANES -P threads -n NAME@%h`, with the arguments derived from
the settings.
"""

from __future__ import annotations

from vestry.lanes import LANES
from workers.celery_integration import worker_lifecycle
from workers.settings import Settings, read_settings

SPARE_THREADS = 2
"""Pool threads beyond the slots: a stale hint is dropped without waiting for a running batch."""


def argv(settings: Settings) -> list[str]:
    """The arguments of `celery worker`, derived from the settings.

    Raises:
        SystemExit: the settings name no lane.
    """
    if not settings.lanes or settings.privacy is None:
        raise SystemExit("a worker needs VESTRY_PRIVACY and VESTRY_LANES")
    lane = LANES[settings.lanes[0]]
    several = len(settings.lanes) > 1
    name = f"{lane.privacy}-{lane.pool}" if several else lane.name.replace(".", "-")
    return [
        "worker",
        "--queues",
        ",".join(settings.lanes),
        "--pool",
        "threads",
        "--concurrency",
        str(settings.slots * len(settings.lanes) + SPARE_THREADS),
        "--hostname",
        f"{name}@%h",
        "--loglevel",
        settings.log_level,
        "--without-mingle",
        "--without-gossip",
    ]


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    settings = read_settings("worker", ("database_url", "broker_url"))
    arguments = argv(settings)
    worker_lifecycle.set_nice(settings.nice)
    from workers import app  # noqa: PLC0415 - reads the settings on first access

    app.app.worker_main(arguments)


if __name__ == "__main__":
    main()
