"""PDF files, through pdfium: the text that a page carries, or an image of it.

pdfium is not thread-safe: one thread of a child process calls it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from ctypes import c_int
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

import pypdfium2
from PIL import Image
from pypdfium2 import raw

from inference.pages.faults import Fault
from inference.pages.geometry import Box
from inference.pages.limits import LONGEST_SIDE, Limits
from inference.pages.text_layer import cleaned, is_the_pages_text

RENDER_DPI: Final = 300
"""What Tesseract reads best."""
POINTS: Final = 72
"""To an inch."""
_LEAST_DPI: Final = 72
"""Lower than this a page is not rendered to fit the limits, but refused."""
_LOOKED_AT: Final = 20_000
"""Objects of a page that are looked at for images; more are made by hostile files and by maps."""
_SAMPLE: Final = 400
"""Characters that are asked whether they are painted."""
_FINE: Final = 100
"""Parts of a point that positions are computed in; pdfium gives whole numbers."""


@dataclass(frozen=True, slots=True)
class TextLayer:
    """A page's own text. Words are None unless they were asked for; boxes are in points."""

    text: str = field(repr=False)
    words: list[tuple[str, Box]] | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page as a grey image."""

    image: Image.Image = field(repr=False)
    dpi: int


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page, its size in points as it is shown, and its text or image."""

    width: float
    height: float
    content: TextLayer | Rendered


def page_count(path: str) -> int:
    """Pages of a file.

    Raises:
        Fault: it cannot be opened.
    """
    with _document(path) as document:
        return len(document)


def page(path: str, number: int, limits: Limits, *, words: bool, dpi: int | None) -> PdfPage:
    """A page.

    Args:
        path: the file.
        number: from 1.
        limits: of its pixels and characters.
        words: whether boxes are wanted.
        dpi: resolution to render it at, if need be; less where it would be too large.

    Raises:
        Fault: it cannot be opened, is too large, or has too much text.
    """
    with _document(path) as document:
        try:
            shown = _loaded(document, number)
            width, height = shown.get_size()
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise Fault("damaged_page")
            layer = _text_layer(shown, limits, words=words)
            content = layer or _render(shown, width, height, limits, dpi or RENDER_DPI)
        except pypdfium2.PdfiumError:
            raise Fault("damaged_page") from None
        return PdfPage(width, height, content)


@contextlib.contextmanager
def _document(path: str) -> Iterator[pypdfium2.PdfDocument]:
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code in {raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY}
        raise Fault("encrypted_file" if locked else "unreadable_file") from None
    with document:
        yield document


def _loaded(document: pypdfium2.PdfDocument, number: int) -> pypdfium2.PdfPage:
    """A page, with what was filled into its form made part of it."""
    if document.get_formtype() != raw.FORMTYPE_NONE:
        document.init_forms()
        form = document[number - 1]
        with contextlib.suppress(pypdfium2.PdfiumError):  # then without
            form.flatten()
        form.close()
    return document[number - 1]


def _text_layer(shown: pypdfium2.PdfPage, limits: Limits, *, words: bool) -> TextLayer | None:
    layer = shown.get_textpage()
    count = layer.count_chars()
    if count > limits.characters:
        raise Fault("too_much_text", limit=limits.characters)
    text = cleaned(layer.get_text_bounded())
    if not is_the_pages_text(text, _pictures(shown), _visible(layer, count)):
        return None
    return TextLayer(text, list(_words(shown, layer, count)) if words else None)


def _pictures(shown: pypdfium2.PdfPage) -> float:
    """Share of the page's area under images."""
    left, bottom, right, top = shown.get_bbox()
    covered = 0.0
    for image in islice(shown.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]), _LOOKED_AT):
        x0, y0, x1, y1 = image.get_bounds()
        covered += max(0.0, min(x1, right) - max(x0, left)) * max(
            0.0, min(y1, top) - max(y0, bottom)
        )
    area = (right - left) * (top - bottom)
    return min(1.0, covered / area) if area > 0 else 0.0


def _visible(layer: Any, count: int) -> float:
    """Share of the layer's characters that are painted, from a sample of them."""
    asked = painted = 0
    for index in range(0, count, max(1, count // _SAMPLE)):
        text_object = raw.FPDFText_GetTextObject(layer, index)
        if text_object:
            asked += 1
            mode = raw.FPDFTextObj_GetTextRenderMode(text_object)
            painted += mode != raw.FPDF_TEXTRENDERMODE_INVISIBLE
    return painted / asked if asked else 0.0


def _words(
    shown: pypdfium2.PdfPage, layer: pypdfium2.PdfTextPage, count: int
) -> Iterator[tuple[str, Box]]:
    """Words between white space, each with the box around its characters."""
    word, boxes = "", list[Box]()
    for index in range(count):
        character = cleaned(chr(raw.FPDFText_GetUnicode(layer, index) or 0x20))
        if character:
            word += character
            if not raw.FPDFText_IsGenerated(layer, index):
                boxes.append(_on_page(shown, layer.get_charbox(index)))
        elif word:
            yield from _word(word, boxes)
            word, boxes = "", []
    yield from _word(word, boxes)


def _word(word: str, boxes: list[Box]) -> Iterator[tuple[str, Box]]:
    if word and boxes:
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        yield word, (min(lefts), min(tops), max(rights), max(bottoms))


def _on_page(shown: pypdfium2.PdfPage, box: Box) -> Box:
    """From the PDF's own coordinates to points from the upper left corner of the page as shown."""
    width, height = shown.get_size()
    left, bottom, right, top = box
    xs, ys = [], []
    for x, y in ((left, bottom), (right, top)):
        at_x, at_y = c_int(), c_int()
        size = (round(width * _FINE), round(height * _FINE))
        raw.FPDF_PageToDevice(shown, 0, 0, *size, 0, x, y, at_x, at_y)
        xs.append(at_x.value / _FINE)
        ys.append(at_y.value / _FINE)
    return min(xs), min(ys), max(xs), max(ys)


def _render(
    shown: pypdfium2.PdfPage, width: float, height: float, limits: Limits, dpi: int
) -> Rendered:
    inches = (width / POINTS, height / POINTS)
    fitting = min(
        dpi,
        math.sqrt(limits.pixels / (inches[0] * inches[1])),
        (LONGEST_SIDE - 1) / max(inches),
    )
    if fitting < min(dpi, _LEAST_DPI):
        raise Fault("page_too_large", megapixels=limits.megapixels, side=LONGEST_SIDE)
    bitmap = shown.render(scale=int(fitting) / POINTS, grayscale=True)
    try:
        return Rendered(bitmap.to_pil().copy(), int(fitting))
    finally:
        bitmap.close()
