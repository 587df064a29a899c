"""From a file's page to its text: the page's own text layer, or what Tesseract makes of its image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from inference.ocr import image_loading, pdf
from inference.ocr.config import OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.tesseract import OcrText, Tesseract
from inference.ocr.transforms import PageImage, skew

LEAST_SKEW: Final = 1.0
"""Degrees below which Tesseract needs no help."""
SMALL: Final = 1_000_000
"""Pixels below which an image is read at twice its size, unless it says to be of ENOUGH_DPI."""
ENOUGH_DPI: Final = 200
_DECIMALS: Final = 2


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way to read a page, and what came of it."""

    reading: OcrText
    placed: PageImage
    rotation: int
    skew: float


def count(path: str, kind: str, limits: OcrLimits) -> int:
    """Pages of a file.

    Raises:
        Fault: it cannot be opened.
    """
    return pdf.page_count(path) if kind == "pdf" else image_loading.page_count(path, kind, limits)


def read_page(
    path: str,
    kind: str,
    number: int,
    limits: OcrLimits,
    tesseract: Tesseract,
    *,
    dpi: int | None,
    words: bool,
) -> dict[str, Any]:
    """A page as `vestry.jobs.ocr.OcrPage` has it in JSON.

    Args:
        path: the file.
        kind: as `vestry.file_kinds` tells it.
        number: from 1.
        limits: refused before decoding.
        tesseract: for pages without text of their own.
        dpi: resolution of an image, or at which to render.
        words: whether to give the words with their boxes.

    Raises:
        Fault: it cannot be read.
        MemoryError: it takes too much.
    """
    if kind != "pdf":
        image, stated = image_loading.page(path, kind, number, limits)
        placed = PageImage(image, float(image.width), float(image.height))
        return {
            "page": number,
            "unit": "px",
            **_from_image(placed, dpi or stated, tesseract, words),
        }
    found = pdf.page(path, number, limits, words=words, dpi=dpi)
    if isinstance(found.content, pdf.TextLayer):
        body = _from_layer(found.content)
    else:
        scale = pdf.POINTS / found.content.dpi
        to_page = (scale, 0.0, 0.0, 0.0, scale, 0.0)
        placed = PageImage(found.content.image, found.width, found.height, to_page)
        body = _from_image(placed, found.content.dpi, tesseract, words)
    size = {"width": _short(found.width), "height": _short(found.height)}
    return {"page": number, "unit": "pt", **body, **size}


def _from_layer(layer: pdf.TextLayer) -> dict[str, Any]:
    body: dict[str, Any] = {
        "text": layer.text,
        "confidence": None,
        "source": "text-layer",
        "rotation": layer.rotation,
    }
    if layer.words is not None:
        body["words"] = [
            {"text": text, "box": [_short(side) for side in box], "confidence": None}
            for text, box in layer.words
        ]
    return body


def _from_image(
    placed: PageImage, dpi: int | None, tesseract: Tesseract, words: bool
) -> dict[str, Any]:
    best = read_image(placed, dpi, tesseract)
    confidence = best.reading.confidence
    body: dict[str, Any] = {
        "text": best.reading.text,
        "confidence": None if confidence is None else round(confidence, 4),
        "source": "ocr",
        "rotation": best.rotation,
        "skew": best.skew,
        "width": _short(placed.width),
        "height": _short(placed.height),
    }
    if words:
        body["words"] = [
            {
                "text": word.text,
                "box": [_short(side) for side in best.placed.box(word.box)],
                "confidence": round(word.confidence, 4),
            }
            for word in best.reading.words
        ]
    return body


def read_image(placed: PageImage, dpi: int | None, tesseract: Tesseract) -> Attempt:
    """The best of several attempts; most pages need one.

    A doubtful one is turned: as Tesseract's own orientation detection says, or all the ways round where
    too little is on the page for that.

    Raises:
        Fault: as `Tesseract.read`.
    """
    if image_loading.is_blank(placed.image):
        return Attempt(OcrText(()), placed, 0, 0.0)
    width, height = placed.image.size
    if width * height < SMALL and (dpi or 0) < ENOUGH_DPI:
        placed, dpi = placed.enlarged(2), dpi and 2 * dpi
    best = _attempt(placed, 0, dpi, tesseract)
    for rotation in _other_rotations(best, tesseract):
        try:
            other = _attempt(placed, rotation, dpi, tesseract)
        except PageError:
            if best.reading.words:
                break  # something was read, which is better than nothing
            raise
        if other.reading.score > best.reading.score:
            best = other
        if best.reading.is_confident:
            break
    return best


def _other_rotations(upright: Attempt, tesseract: Tesseract) -> Iterator[int]:
    if upright.reading.is_confident:
        return
    found = tesseract.rotation(upright.placed.image)
    if found is None:
        yield from (90, 270, 180)
    elif found:
        yield found


def _attempt(placed: PageImage, rotation: int, dpi: int | None, tesseract: Tesseract) -> Attempt:
    """Turned, evenly lit, straightened: what the page needs of it."""
    ways = [placed.rotated(rotation)]
    evened = image_loading.normalise_lighting(ways[0].image)
    if evened is not None:
        ways.append(replace(ways[0], image=evened))
    angle = skew(ways[-1].image)
    if abs(angle) < LEAST_SKEW:
        angle = 0.0
    else:
        ways = [way.deskewed(angle) for way in ways]
    # A picture on the page looks like a shadow too: what was read decides between the two ways.
    attempts = [Attempt(tesseract.read(way.image, dpi), way, rotation, angle) for way in ways]
    return max(attempts, key=lambda made: made.reading.score)


def _short(number: float) -> float:
    return round(number, _DECIMALS)
