"""Pages of PDF files, by pdfium: a page's text layer, or an image of it.

pdfium is not thread-safe: a single thread of a worker process calls it.
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

from inference.ocr.config import MAX_SIDE, OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.text_layer import clean_text, text_layer_is_usable
from inference.ocr.transforms import Box

RENDER_DPI: Final = 300
"""Tesseract reads best at this resolution."""
POINTS: Final = 72
"""Points per inch."""
_MIN_DPI: Final = 72
"""A page that fits the limits only at a lower resolution is refused."""
_MAX_OBJECTS: Final = 20_000
"""Objects of a page that are searched for images; only maps and hostile files have more."""
_SAMPLE: Final = 400
"""Characters of a page whose visibility and orientation are read."""
_BREAKS: Final = "\u0002\ufffe"
"""pdfium's characters for a hyphen at the end of a line together with that line end."""
_HYPHEN_BREAK: Final = "-\n"
_SUBPIXELS: Final = 100
"""Positions are computed in hundredths of a point: pdfium returns whole numbers."""


@dataclass(frozen=True, slots=True)
class TextLayer:
    """A page's own text.

    Attributes:
        words: with boxes in points; None unless requested.
        rotation: degrees clockwise by which the page must be rotated for the text to be upright.
    """

    text: str = field(repr=False)
    words: list[tuple[str, Box]] | None = field(repr=False)
    rotation: int


@dataclass(frozen=True, slots=True)
class RenderedPage:
    """A page as a grey image."""

    image: Image.Image = field(repr=False)
    dpi: int


@dataclass(frozen=True, slots=True)
class PdfPage:
    """A page: its displayed size in points, and its text or image."""

    width: float
    height: float
    content: TextLayer | RenderedPage


def page_count(path: str) -> int:
    """Number of pages of a file.

    Raises:
        PageError: it cannot be opened.
    """
    with _document(path) as document:
        return len(document)


def page(path: str, number: int, limits: OcrLimits, *, words: bool, dpi: int | None) -> PdfPage:
    """Read a page's text layer, or render it.

    Args:
        path: of the file.
        number: from 1.
        limits: of its pixels and characters.
        words: whether words with boxes are returned.
        dpi: resolution for rendering; reduced if the image would be too large.

    Raises:
        PageError: it cannot be opened, is too large, or has too much text.
    """
    with _document(path) as document:
        try:
            pdf_page = _loaded(document, number)
            width, height = pdf_page.get_size()
            if not (0 < width < math.inf and 0 < height < math.inf):
                raise PageError("damaged_page")
            layer = _text_layer(pdf_page, limits, words=words)
            content = layer or _render(pdf_page, width, height, limits, dpi or RENDER_DPI)
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
    """A page, with the values of its form fields flattened into it."""
    if document.get_formtype() != raw.FORMTYPE_NONE:
        document.init_forms()
        form = document[number - 1]
        with contextlib.suppress(pypdfium2.PdfiumError):  # then without them
            form.flatten()
        form.close()
    return document[number - 1]


def _text_layer(page: pypdfium2.PdfPage, limits: OcrLimits, *, words: bool) -> TextLayer | None:
    layer = page.get_textpage()
    count = layer.count_chars()
    if count > limits.characters:
        raise PageError("too_much_text", limit=limits.characters)
    visible, upright = _sampled(layer, count)
    current = page.get_rotation()
    if upright != current:
        # pdfium orders lines by their positions on the displayed page.
        page.set_rotation(upright)
        layer = page.get_textpage()
        count = layer.count_chars()
        page.set_rotation(current)
    characters = _characters(page, layer, count)
    text = clean_text("".join(characters))
    if not text_layer_is_usable(text, _image_share(page), visible):
        return None
    boxed = list(_words(page, layer, characters)) if words else None
    return TextLayer(text, boxed, (upright - current) % 360)


def _sampled(layer: pypdfium2.PdfTextPage, count: int) -> tuple[float, int]:
    """Share of the characters that are painted, and the page's rotation at which most are upright."""
    sampled = painted = 0
    upright: Counter[int] = Counter({0: 0})
    for index in range(0, count, max(1, count // _SAMPLE)):
        text_object = raw.FPDFText_GetTextObject(layer, index)
        if text_object and not raw.FPDFText_IsGenerated(layer, index):
            sampled += 1
            mode = raw.FPDFTextObj_GetTextRenderMode(text_object)
            painted += mode != raw.FPDF_TEXTRENDERMODE_INVISIBLE
            angle = math.degrees(raw.FPDFText_GetCharAngle(layer, index))
            upright[-round(angle / 90) * 90 % 360] += 1
    return painted / sampled if sampled else 0.0, upright.most_common(1)[0][0]


def _characters(page: pypdfium2.PdfPage, layer: pypdfium2.PdfTextPage, count: int) -> list[str]:
    """The layer's characters, with those that pdfium generates; those off the page are empty."""
    left, bottom, right, top = page.get_bbox()
    characters: list[str] = []
    for index in range(count):
        character = chr(raw.FPDFText_GetUnicode(layer, index))
        if not raw.FPDFText_IsGenerated(layer, index):
            x0, y0, x1, y1 = layer.get_charbox(index)
            if not (left <= (x0 + x1) / 2 <= right and bottom <= (y0 + y1) / 2 <= top):
                character = ""
        characters.append(_HYPHEN_BREAK if character in _BREAKS else character)
    return characters


def _image_share(page: pypdfium2.PdfPage) -> float:
    """Share of the page's area under images."""
    left, bottom, right, top = page.get_bbox()
    covered = 0.0
    for image in islice(page.get_objects(filter=[raw.FPDF_PAGEOBJ_IMAGE]), _MAX_OBJECTS):
        x0, y0, x1, y1 = image.get_bounds()
        covered += max(0.0, min(x1, right) - max(x0, left)) * max(
            0.0, min(y1, top) - max(y0, bottom)
        )
    area = (right - left) * (top - bottom)
    return min(1.0, covered / area) if area > 0 else 0.0


def _words(
    page: pypdfium2.PdfPage, layer: pypdfium2.PdfTextPage, characters: list[str]
) -> Iterator[tuple[str, Box]]:
    """Words between white space, each with the box around its characters."""
    word, boxes = "", list[Box]()
    for index, character in enumerate(characters):
        word += character.strip()
        if character.strip() and not raw.FPDFText_IsGenerated(layer, index):
            boxes.append(_on_page(page, layer.get_charbox(index)))
        if character[-1:].isspace():
            yield from _word(word, boxes)
            word, boxes = "", []
    yield from _word(word, boxes)


def _word(word: str, boxes: list[Box]) -> Iterator[tuple[str, Box]]:
    if (word := clean_text(word)) and boxes:
        lefts, tops, rights, bottoms = zip(*boxes, strict=True)
        yield word, (min(lefts), min(tops), max(rights), max(bottoms))


def _on_page(page: pypdfium2.PdfPage, box: Box) -> Box:
    """From PDF coordinates to points from the upper left corner of the displayed page."""
    width, height = page.get_size()
    left, bottom, right, top = box
    xs, ys = [], []
    for x, y in ((left, bottom), (right, top)):
        device_x, device_y = c_int(), c_int()
        size = (round(width * _SUBPIXELS), round(height * _SUBPIXELS))
        raw.FPDF_PageToDevice(page, 0, 0, *size, 0, x, y, device_x, device_y)
        xs.append(device_x.value / _SUBPIXELS)
        ys.append(device_y.value / _SUBPIXELS)
    return min(xs), min(ys), max(xs), max(ys)


def _render(
    page: pypdfium2.PdfPage, width: float, height: float, limits: OcrLimits, dpi: int
) -> RenderedPage:
    inches = (width / POINTS, height / POINTS)
    fitting_dpi = min(
        dpi,
        math.sqrt(limits.pixels / (inches[0] * inches[1])),
        (MAX_SIDE - 1) / max(inches),
    )
    if fitting_dpi < min(dpi, _MIN_DPI):
        raise PageError("page_too_large", megapixels=limits.megapixels, side=MAX_SIDE)
    bitmap = page.render(scale=int(fitting_dpi) / POINTS, grayscale=True)
    try:
        return RenderedPage(bitmap.to_pil().copy(), int(fitting_dpi))
    finally:
        bitmap.close()
