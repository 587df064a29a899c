"""How much a file may take: pages, pixels, bytes, seconds, memory."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

MEGABYTE = 1024 * 1024
LONGEST_SIDE = 32_767
"""Pixels of a side; Tesseract counts them in 16 bits."""


@dataclass(frozen=True, slots=True)
class OcrLimits:
    """Bounds on one file and on each of its pages.

    Attributes:
        megabytes: of the file.
        pages: read in one job.
        megapixels: of one page, before anything of it is decoded.
        page_s: seconds for one page, after which its process is killed.
        document_s: seconds for a whole file; pages not begun by then are reported as not read.
        memory_mb: address space of a process that reads pages, and of its Tesseract.
        characters: of one page's text layer.
    """

    megabytes: int = 64
    pages: int = 200
    megapixels: int = 100
    page_s: float = 120.0
    document_s: float = 600.0
    memory_mb: int = 2048
    characters: int = 1_000_000

    @property
    def pixels(self) -> int:
        """Of one page."""
        return self.megapixels * 1_000_000


# What a child process is told when it starts.


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
    limits: OcrLimits

    def to_json(self) -> str:
        """For a command line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setup:
        """From a command line."""
        fields = json.loads(text)
        return cls(**{**fields, "limits": OcrLimits(**fields["limits"])})
