"""What stands, in a job of a flow, for the text of the job before it."""

from __future__ import annotations

from typing import Final


class _Upstream(str):
    """A text that stands for another; shows itself by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UPSTREAM"


# Of Unicode's private use area, so that no text is taken for it.
UPSTREAM: Final = _Upstream("\ue000vestry: the text of the job before\ue000")
"""In a job of a flow: the text of the nearest job before it that has one. Give it wherever a text is
expected: `Embedding(documents=[Document(UPSTREAM, id="scan-7")], source="scans")`."""
