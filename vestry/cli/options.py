"""Options that several commands take, and what they mean."""

from __future__ import annotations

from typing import Annotated

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
