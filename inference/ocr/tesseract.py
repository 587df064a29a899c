"""Calls Tesseract: a grey image in, words with their boxes and confidence out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytesseract
from PIL import Image

from inference.ocr.errors import PageError
from inference.ocr.transforms import Box

MIN_WORD_CONFIDENCE: Final = 0.5
"""Words up to this confidence do not raise a score: garbage has as much."""
SUFFICIENT_CONFIDENCE: Final = 0.75
"""Mean confidence from which no other rotation is tried: text upside down has 0.4, clean print 0.95."""
_WORD_LEVEL: Final = 5
"""Of the levels page, block, paragraph, line, word."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, its box in pixels of the image, confidence 0 to 1, and its block, paragraph and line."""

    text: str = field(repr=False)
    box: Box
    confidence: float
    line: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class OcrText:
    """The text of an image."""

    words: tuple[Word, ...] = field(repr=False)

    @property
    def confidence(self) -> float | None:
        """Mean over the characters; None if there is no word."""
        characters = sum(len(word.text) for word in self.words)
        total = sum(len(word.text) * word.confidence for word in self.words)
        return total / characters if characters else None

    @property
    def score(self) -> float:
        """Characters weighted by confidence; of two texts of one page the one with more is better."""
        return sum(
            len(word.text) * max(0.0, word.confidence - MIN_WORD_CONFIDENCE) for word in self.words
        )

    @property
    def is_confident(self) -> bool:
        """Whether another rotation need not be tried."""
        return (self.confidence or 0.0) >= SUFFICIENT_CONFIDENCE

    @property
    def text(self) -> str:
        """Lines, with an empty one between paragraphs."""
        return "".join(self._pieces())

    def _pieces(self) -> Iterator[str]:
        previous: tuple[int, int, int] | None = None
        for word in self.words:
            if previous is not None:
                if word.line == previous:
                    yield " "
                else:
                    yield "\n" if word.line[:2] == previous[:2] else "\n\n"
            yield word.text
            previous = word.line


class Tesseract:
    """The program, for one page.

    Args:
        languages: joined by `+`.
        deadline: of the page, in `time.monotonic()`.
    """

    def __init__(self, languages: str, deadline: float) -> None:
        self._languages = languages
        self._deadline = deadline

    def read(self, image: Image.Image, dpi: int | None) -> OcrText:
        """Read an image of horizontal lines.

        Raises:
            PageError: the program failed, or the deadline has passed.
        """
        config = "" if dpi is None else f"--dpi {dpi}"
        table = self._run(pytesseract.image_to_data, image, lang=self._languages, config=config)
        return OcrText(tuple(_words(table)))

    def rotation(self, image: Image.Image) -> int | None:
        """Degrees clockwise by which the image must be rotated to be upright; None if undetected."""
        try:
            return int(self._run(pytesseract.image_to_osd, image)["rotate"]) % 360
        except (PageError, KeyError):  # too few characters, or no data for it
            return None

    def _run(self, call: Any, image: Image.Image, **more: Any) -> Mapping[str, Any]:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise PageError("time_limit", seconds=0)
        image.format = "PPM"  # pytesseract passes it in this format: uncompressed
        try:
            table: Mapping[str, Any] = call(
                image, output_type=pytesseract.Output.DICT, timeout=seconds, **more
            )
        except pytesseract.TesseractError:
            raise PageError("reader_failed") from None
        except RuntimeError:  # pytesseract's timeout
            raise PageError("time_limit", seconds=0) from None
        return table


def _words(table: Mapping[str, Any]) -> Iterator[Word]:
    names = ("level", "text", "conf", "left", "top", "width", "height")
    line_names = ("block_num", "par_num", "line_num")
    columns = [table.get(name, ()) for name in (*names, *line_names)]
    for level, text, conf, left, top, width, height, *line in zip(*columns, strict=False):
        if level == _WORD_LEVEL and str(text).strip():
            box = (float(left), float(top), float(left + width), float(top + height))
            confidence = min(max(float(conf), 0.0), 100.0) / 100
            yield Word(str(text).strip(), box, confidence, (line[0], line[1], line[2]))
