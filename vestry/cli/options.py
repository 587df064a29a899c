"""Options that several commands share, and the parser of `--since`."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Final

import typer

from vestry.lanes import Latency, Privacy

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and nothing else, on stdout.")
]

PrivacyOption = Annotated[
    Privacy,
    typer.Option(
        "--privacy",
        help="private: processed on your own machines only. shareable: a cloud model may process "
        "it. There is no default.",
        case_sensitive=False,
        show_default=False,
    ),
]

OwnerOption = Annotated[
    str,
    typer.Option(
        "--owner",
        help="Owner of the content: an opaque id, such as u17. Stored unencrypted.",
        show_default=False,
    ),
]

LatencyOption = Annotated[
    Latency,
    typer.Option(
        "--latency",
        help="interactive: a user waits for the result. bulk: lower priority.",
        case_sensitive=False,
    ),
]

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", help="A model of the workers' catalogue. Default: the workers' setting."
    ),
]

TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout", min=0, help="Most seconds to wait. Exit code 4 if the job takes longer."
    ),
]

_AGE: Final = re.compile(r"(?P<number>\d{1,6})\s*(?P<unit>[smhdw])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

SinceOption = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="AGE|TIME",
        help="Only jobs that ended since an age (30m, 2h, 7d) or a time (2026-11-23T08:00Z).",
    ),
]


def parse_since(value: str | None) -> dt.datetime | dt.timedelta | None:
    """Parse `--since`: an age, or a time, by default in this machine's time zone.

    Raises:
        typer.BadParameter: the value is neither an age nor a time.
    """
    if value is None:
        return None
    age = _AGE.fullmatch(value.strip().lower())
    if age is not None:
        return dt.timedelta(**{_UNITS[age["unit"]]: int(age["number"])})
    try:
        return dt.datetime.fromisoformat(value.strip()).astimezone()
    except ValueError:
        raise typer.BadParameter(
            "--since takes an age such as 30m, 2h or 7d, or a time such as 2026-11-23T08:00Z"
        ) from None
