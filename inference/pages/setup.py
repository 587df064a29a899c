"""What a child process is told when it starts."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

from inference.pages.limits import Limits


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything a child knows.

    Attributes:
        tesseract: the program.
        tessdata: directory of its language data.
        nice: priority, 0 to 19.
        limits: of files and pages.
    """

    tesseract: str
    tessdata: str
    nice: int
    limits: Limits

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """From a command line."""
        fields = json.loads(text)
        return cls(**{**fields, "limits": Limits(**fields["limits"])})
