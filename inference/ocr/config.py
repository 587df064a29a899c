"""Limits of OCR (pages, pixels, bytes, seconds, memory), and the setup of a worker process."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass

MEGABYTE = 1024 * 1024
MAX_SIDE = 32_767
"""Most pixels of an image's side: Tesseract counts them in 16 bits, signed."""


@dataclass(frozen=True, slots=True)
class OcrLimits:
    """Limits of one file and of each of its pages.

    Attributes:
        megabytes: of the file.
        pages: read in one job.
        megapixels: of one page, checked before it is decoded.
        page_s: seconds for one page, after which its process is killed.
        document_s: seconds for a whole file; later pages are reported as not read.
        memory_mb: address space of a worker process, and of its Tesseract.
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
        """Most pixels of one page."""
        return self.megapixels * 1_000_000


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """Configuration of a worker process; it gets nothing else.

    Attributes:
        tesseract: path of the program.
        tessdata: directory of its language data.
        nice: priority, 0 to 19.
        limits: of files and pages.
    """

    tesseract: str
    tessdata: str
    nice: int
    limits: OcrLimits

    def to_json(self) -> str:
        """As the worker's command-line argument."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> WorkerSetup:
        """From the worker's command-line argument."""
        fields = json.loads(text)
        return cls(**{**fields, "limits": OcrLimits(**fields["limits"])})
