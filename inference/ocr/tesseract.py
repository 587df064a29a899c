"""One call of Tesseract: a grey image in, words with their places and confidence out."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import pytesseract
from PIL import Image

from inference.ocr.errors import PageError
from inference.ocr.transforms import Box

GUESSED: Final = 0.5
"""Confidence up to which a word says nothing in favour of a reading: garbage has as much."""
SURE: Final = 0.75
"""Mean confidence from which nothing else is tried: text upside down gets 0.4, clean print 0.95."""
_WORD: Final = 5
"""Tesseract's level of a word, in the order page, block, paragraph, line, word."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, its box in pixels of the image, confidence 0 to 1, and its block, paragraph and line."""

    text: str = field(repr=False)
    box: Box
    confidence: float
    line: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class OcrText:
    """What Tesseract made of an image."""

    words: tuple[Word, ...] = field(repr=False)

    @property
    def confidence(self) -> float | None:
        """Mean over the characters; None where there is no word."""
        characters = sum(len(word.text) for word in self.words)
        total = sum(len(word.text) * word.confidence for word in self.words)
        return total / characters if characters else None

    @property
    def score(self) -> float:
        """How much was read, by how surely; of two readings of one page the higher is the better."""
        return sum(len(word.text) * max(0.0, word.confidence - GUESSED) for word in self.words)

    @property
    def is_confident(self) -> bool:
        """Whether trying something else would be for nothing."""
        return (self.confidence or 0.0) >= SURE

    @property
    def text(self) -> str:
        """Lines, with a blank one between paragraphs."""
        return "".join(self._pieces())

    def _pieces(self) -> Iterator[str]:
        before: tuple[int, int, int] | None = None
        for word in self.words:
            if before is not None:
                if word.line == before:
                    yield " "
                else:
                    yield "\n" if word.line[:2] == before[:2] else "\n\n"
            yield word.text
            before = word.line


class Tesseract:
    """The program, as one page uses it.

    Args:
        languages: joined by `+`.
        until: when the page's time is over, of `time.monotonic()`.
    """

    def __init__(self, languages: str, until: float) -> None:
        self._languages = languages
        self._until = until

    def read(self, image: Image.Image, dpi: int | None) -> OcrText:
        """Read an image whose lines lie level.

        Raises:
            Fault: the program failed, or the time is over.
        """
        config = "" if dpi is None else f"--dpi {dpi}"
        table = self._run(pytesseract.image_to_data, image, lang=self._languages, config=config)
        return OcrText(tuple(_words(table)))

    def rotation(self, image: Image.Image) -> int | None:
        """Degrees clockwise by which the image must be turned to be upright; None if it cannot tell."""
        try:
            return int(self._run(pytesseract.image_to_osd, image)["rotate"]) % 360
        except (PageError, KeyError):  # too few characters, or no data for it
            return None

    def _run(self, call: Any, image: Image.Image, **more: Any) -> Mapping[str, Any]:
        seconds = self._until - time.monotonic()
        if seconds <= 0:
            raise PageError("time_limit", seconds=0)
        image.format = "PPM"  # what pytesseract hands it over as: nothing to compress
        try:
            table: Mapping[str, Any] = call(
                image, output_type=pytesseract.Output.DICT, timeout=seconds, **more
            )
        except pytesseract.TesseractError:
            raise PageError("reader_failed") from None
        except RuntimeError:  # how pytesseract says that the time is over
            raise PageError("time_limit", seconds=0) from None
        return table


def _words(table: Mapping[str, Any]) -> Iterator[Word]:
    names = ("level", "text", "conf", "left", "top", "width", "height")
    places = ("block_num", "par_num", "line_num")
    columns = [table.get(name, ()) for name in (*names, *places)]
    for level, text, conf, left, top, width, height, *line in zip(*columns, strict=False):
        if level == _WORD and str(text).strip():
            box = (float(left), float(top), float(left + width), float(top + height))
            confidence = min(max(float(conf), 0.0), 100.0) / 100
            yield Word(str(text).strip(), box, confidence, (line[0], line[1], line[2]))
