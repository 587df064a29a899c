"""PDF files, through pdfium: the text that a page carries, or an image of it.

pdfium is not thread-safe: one thread of a child process calls it.
"""

from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Iterator
from ctypes import c_int
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import pypdfium2
from PIL import Image
from pypdfium2 import raw

from inference.ocr.config import LONGEST_SIDE, OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.text_layer import cleaned, is_the_pages_text
from inference.ocr.transforms import Box

RENDER_DPI: Final = 300
"""What Tesseract reads best."""
POINTS: Final = 72
"""To an inch."""
_LEAST_DPI: Final = 72
"""Lower than this a page is not rendered to fit the limits, but refused."""
_LOOKED_AT: Final = 20_000
"""Objects of a page that are looked at for images; more are made by hostile files and by maps."""
_SAMPLE: Final = 400
"""Characters that are asked whether they are painted, and which way up."""
_BREAKS: Final = "\u0002\ufffe"
"""What pdfium has in place of a hyphen at the end of a line, and of the end of that line."""
_BROKEN: Final = "-\n"
_FINE: Final = 100
"""Parts of a point that positions are computed in; pdfium gives whole numbers."""


@dataclass(frozen=True, slots=True)
class TextLayer:
    """A page's own text. Words are None unless they were asked for; boxes are in points.

    `rotation` is by how many degrees clockwise the page must be turned for the text to stand upright.
    """

    text: str = field(repr=False)
    words: list[tuple[str, Box]] | None = field(repr=False)
    rotation: int


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


def page(path: str, number: int, limits: OcrLimits, *, words: bool, dpi: int | None) -> PdfPage:
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
                raise PageError("damaged_page")
            layer = _text_layer(shown, limits, words=words)
            content = layer or _render(shown, width, height, limits, dpi or RENDER_DPI)
        except pypdfium2.PdfiumError:
            raise PageError("damaged_page") from None
        return PdfPage(width, height, content)


@contextlib.contextmanager
def _document(path: str) -> Iterator[pypdfium2.PdfDocument]:
    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        locked = error.err_code in {raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY}
        raise PageError("encrypted_file" if locked else "unreadable_file") from None
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


def _text_layer(shown: pypdfium2.PdfPage, limits: OcrLimits, *, words: bool) -> TextLayer | None:
    layer = shown.get_textpage()
    count = layer.count_chars()
    if count > limits.characters:
        raise PageError("too_much_text", limit=limits.characters)
    visible, upright = _sampled(layer, count)
    current = shown.get_rotation()
    if upright != current:
        # pdfium puts lines in order by where they are on the page as it is shown.
        shown.set_rotation(upright)
        layer = shown.get_textpage()
        count = layer.count_chars()
        shown.set_rotation(current)
    characters = _characters(shown, layer, count)
    text = cleaned("".join(characters))
    if not is_the_pages_text(text, _pictures(shown), visible):
        return None
    boxed = list(_words(shown, layer, characters)) if words else None
    return TextLayer(text, boxed, (upright - current) % 360)


def _sampled(layer: pypdfium2.PdfTextPage, count: int) -> tuple[float, int]:
    """Share of the characters that are painted, and the page's rotation at which most stand upright."""
    asked = painted = 0
    upright: Counter[int] = Counter({0: 0})
    for index in range(0, count, max(1, count // _SAMPLE)):
        text_object = raw.FPDFText_GetTextObject(layer, index)
        if text_object and not raw.FPDFText_IsGenerated(layer, index):
            asked += 1
            mode = raw.FPDFTextObj_GetTextRenderMode(text_object)
            painted += mode != raw.FPDF_TEXTRENDERMODE_INVISIBLE
            angle = math.degrees(raw.FPDFText_GetCharAngle(layer, index))
            upright[-round(angle / 90) * 90 % 360] += 1
    return painted / asked if asked else 0.0, upright.most_common(1)[0][0]


def _characters(shown: pypdfium2.PdfPage, layer: pypdfium2.PdfTextPage, count: int) -> list[str]:
    """The layer's characters with those that pdfium put between lines; those off the page are empty."""
    left, bottom, right, top = shown.get_bbox()
    found: list[str] = []
    for index in range(count):
        character = chr(raw.FPDFText_GetUnicode(layer, index))
        if not raw.FPDFText_IsGenerated(layer, index):
            x0, y0, x1, y1 = layer.get_charbox(index)
            if not (left <= (x0 + x1) / 2 <= right and bottom <= (y0 + y1) / 2 <= top):
                character = ""
        found.append(_BROKEN if character in _BREAKS else character)
    return found


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


def _words(
    shown: pypdfium2.PdfPage, layer: pypdfium2.PdfTextPage, characters: list[str]
) -> Iterator[tuple[str, Box]]:
    """Words between white space, each with the box around its characters."""
    word, boxes = "", list[Box]()
    for index, character in enumerate(characters):
        word += character.strip()
        if character.strip() and not raw.FPDFText_IsGenerated(layer, index):
            boxes.append(_on_page(shown, layer.get_charbox(index)))
        if character[-1:].isspace():
            yield from _word(word, boxes)
            word, boxes = "", []
    yield from _word(word, boxes)


def _word(word: str, boxes: list[Box]) -> Iterator[tuple[str, Box]]:
    if (word := cleaned(word)) and boxes:
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
    shown: pypdfium2.PdfPage, width: float, height: float, limits: OcrLimits, dpi: int
) -> Rendered:
    inches = (width / POINTS, height / POINTS)
    fitting = min(
        dpi,
        math.sqrt(limits.pixels / (inches[0] * inches[1])),
        (LONGEST_SIDE - 1) / max(inches),
    )
    if fitting < min(dpi, _LEAST_DPI):
        raise PageError("page_too_large", megapixels=limits.megapixels, side=LONGEST_SIDE)
    bitmap = shown.render(scale=int(fitting) / POINTS, grayscale=True)
    try:
        return Rendered(bitmap.to_pil().copy(), int(fitting))
    finally:
        bitmap.close()
