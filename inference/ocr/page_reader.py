"""Reads one page: its text layer, or Tesseract's text of its image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from inference.ocr import image_loading, pdf
from inference.ocr.config import OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.tesseract import OcrText, Tesseract
from inference.ocr.transforms import PageImage, skew

MIN_SKEW: Final = 1.0
"""Degrees below which Tesseract reads as well without deskewing."""
SMALL_IMAGE: Final = 1_000_000
"""Pixels below which an image is read at twice its size, unless it states SUFFICIENT_DPI."""
SUFFICIENT_DPI: Final = 200
_DECIMALS: Final = 2


@dataclass(frozen=True, slots=True)
class Attempt:
    """One transformation of a page's image, and its text."""

    text: OcrText
    image: PageImage
    rotation: int
    skew: float


def count(path: str, kind: str, limits: OcrLimits) -> int:
    """Number of pages of a file.

    Raises:
        PageError: it cannot be opened.
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
    """Read a page, as the JSON of `vestry.jobs.ocr.OcrPage`.

    Args:
        path: of the file.
        kind: as `vestry.jobs.ocr.file_kind` returns it.
        number: from 1.
        limits: checked before decoding.
        tesseract: for pages without a text layer.
        dpi: resolution of an image, or for rendering.
        words: whether the result has words with their boxes.

    Raises:
        PageError: it cannot be read.
        MemoryError: it needs too much memory.
    """
    if kind != "pdf":
        loaded, stated_dpi = image_loading.page(path, kind, number, limits)
        image = PageImage(loaded, float(loaded.width), float(loaded.height))
        return {
            "page": number,
            "unit": "px",
            **_from_image(image, dpi or stated_dpi, tesseract, words),
        }
    page = pdf.page(path, number, limits, words=words, dpi=dpi)
    if isinstance(page.content, pdf.TextLayer):
        body = _from_layer(page.content)
    else:
        scale = pdf.POINTS / page.content.dpi
        to_page = (scale, 0.0, 0.0, 0.0, scale, 0.0)
        image = PageImage(page.content.image, page.width, page.height, to_page)
        body = _from_image(image, page.content.dpi, tesseract, words)
    size = {"width": _rounded(page.width), "height": _rounded(page.height)}
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
            {"text": text, "box": [_rounded(side) for side in box], "confidence": None}
            for text, box in layer.words
        ]
    return body


def _from_image(
    image: PageImage, dpi: int | None, tesseract: Tesseract, words: bool
) -> dict[str, Any]:
    best = read_image(image, dpi, tesseract)
    confidence = best.text.confidence
    body: dict[str, Any] = {
        "text": best.text.text,
        "confidence": None if confidence is None else round(confidence, 4),
        "source": "ocr",
        "rotation": best.rotation,
        "skew": best.skew,
        "width": _rounded(image.width),
        "height": _rounded(image.height),
    }
    if words:
        body["words"] = [
            {
                "text": word.text,
                "box": [_rounded(side) for side in best.image.box(word.box)],
                "confidence": round(word.confidence, 4),
            }
            for word in best.text.words
        ]
    return body


def read_image(image: PageImage, dpi: int | None, tesseract: Tesseract) -> Attempt:
    """The best of several attempts; most pages need one.

    If the first is not confident, the image is rotated to the orientation that Tesseract detects, or to
    each other orientation if the page has too little text for that.

    Raises:
        PageError: as `Tesseract.read`.
    """
    if image_loading.is_blank(image.image):
        return Attempt(OcrText(()), image, 0, 0.0)
    width, height = image.image.size
    if width * height < SMALL_IMAGE and (dpi or 0) < SUFFICIENT_DPI:
        image, dpi = image.enlarged(2), dpi and 2 * dpi
    best = _attempt(image, 0, dpi, tesseract)
    for rotation in _other_rotations(best, tesseract):
        try:
            other = _attempt(image, rotation, dpi, tesseract)
        except PageError:
            if best.text.words:
                break  # some text is better than none
            raise
        if other.text.score > best.text.score:
            best = other
        if best.text.is_confident:
            break
    return best


def _other_rotations(upright: Attempt, tesseract: Tesseract) -> Iterator[int]:
    if upright.text.is_confident:
        return
    rotation = tesseract.rotation(upright.image.image)
    if rotation is None:
        yield from (90, 270, 180)
    elif rotation:
        yield rotation


def _attempt(image: PageImage, rotation: int, dpi: int | None, tesseract: Tesseract) -> Attempt:
    """Read an image after rotation, and after lighting correction and deskewing if it needs them."""
    variants = [image.rotated(rotation)]
    even = image_loading.normalise_lighting(variants[0].image)
    if even is not None:
        variants.append(replace(variants[0], image=even))
    angle = skew(variants[-1].image)
    if abs(angle) < MIN_SKEW:
        angle = 0.0
    else:
        variants = [variant.deskewed(angle) for variant in variants]
    # A picture on the page resembles a shadow: the better text decides between the two variants.
    attempts = [
        Attempt(tesseract.read(variant.image, dpi), variant, rotation, angle)
        for variant in variants
    ]
    return max(attempts, key=lambda attempt: attempt.text.score)


def _rounded(number: float) -> float:
    return round(number, _DECIMALS)
