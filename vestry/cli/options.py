"""Options that several commands take, and what they mean."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Final

import typer

from vestry.lanes import Latency, Privacy

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.")
]

PrivacyOption = Annotated[
    Privacy,
    typer.Option(
        "--privacy",
        help="private: own machines only. shareable: a cloud model may see it. No default.",
        case_sensitive=False,
        show_default=False,
    ),
]

OwnerOption = Annotated[
    str,
    typer.Option(
        "--owner",
        help="Whom the content belongs to: an opaque id, such as u17. Stored in the clear.",
        show_default=False,
    ),
]

LatencyOption = Annotated[
    Latency,
    typer.Option(
        "--latency",
        help="interactive: somebody is waiting. bulk: after those.",
        case_sensitive=False,
    ),
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="A model the workers know. Default: the one they are set up with."
    ),
]

TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0, help="Seconds to wait at most. Exit code 4 when they are over."
    ),
]


# Times as they are given on the command line: `2h`, `30m`, `7d`, or a date and time.

_AGE: Final = re.compile(r"(?P<number>\d{1,6})\s*(?P<unit>[smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="AGE|TIME",
        help="Only those that ended since: an age (30m, 2h, 7d) or a time (2026-11-23T08:00Z).",
    ),
]


def parse_since(told: str | None) -> dt.datetime | dt.timedelta | None:
    """What `--since` was given; a time without a zone is this machine's.

    Raises:
        typer.BadParameter: it is neither an age nor a time.
    """
    if told is None:
        return None
    age = _AGE.fullmatch(told.strip().lower())
    if age is not None:
        return dt.timedelta(**{_UNITS[age["unit"]]: int(age["number"])})
    try:
        return dt.datetime.fromisoformat(told.strip()).astimezone()
    except ValueError:
        raise typer.BadParameter(
            "--since takes an age such as 30m, 2h or 7d, or a time such as 2026-11-23T08:00Z"
        ) from None
