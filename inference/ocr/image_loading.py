"""Image files: how many pages one has, and a page of it as a grey image of dark text on white."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from inference.ocr.config import LONGEST_SIDE, OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.transforms import WHITE

_SIXTEEN_BITS: Final = ("I", "F")
"""Modes of more than eight bits a pixel, by their first letter."""
_STATED_DPI: Final = (100, 1200)
"""Resolutions that are believed: below lie the 72 and 96 that programs write who do not know."""
_PAPER_TILES: Final = 200
"""The paper's shade is looked at in so many places along the shorter side."""
_UNEVEN: Final = 0.85
"""Paper whose dark parts have less than so much of its bright parts' light wants evening out."""
_DARKEST_PAPER: Final = 100
_ONE_SHADE: Final = 16
"""Steps of 255 that a JPEG may make of one shade."""


def page_count(path: str, kind: str, limits: OcrLimits) -> int:
    """Pages of a TIFF; 1 for the others, of which an animation's first picture is taken.

    Raises:
        Fault: it cannot be opened, or is too large to be looked at.
    """
    with _opened(path, kind, limits, "unreadable_file") as image:
        # Walks through the whole file; Pillow ends where it leads in a circle.
        return int(getattr(image, "n_frames", 1)) if kind == "tiff" else 1


def page(path: str, kind: str, number: int, limits: OcrLimits) -> tuple[Image.Image, int | None]:
    """One page as a grey image, upright as its camera or scanner says, and its resolution if told.

    Args:
        path: the file.
        kind: as `vestry.file_kinds` tells it; nothing else is tried.
        number: from 1.
        limits: refused before decoding.

    Raises:
        Fault: it cannot be decoded, or is too large.
    """
    with _opened(path, kind, limits, "damaged_page") as image:
        if kind == "tiff":
            image.seek(number - 1)
        check_size(*image.size, limits)
        dpi = _stated_dpi(image)
        if kind == "jpeg":
            image.draft("L", image.size)
        image.load()
        return grey(ImageOps.exif_transpose(image)), dpi


def check_size(width: int, height: int, limits: OcrLimits) -> None:
    """Refuse a page that is too large, or nothing at all.

    Raises:
        Fault: it is.
    """
    if width < 1 or height < 1:
        raise PageError("damaged_page")
    if width * height > limits.pixels or max(width, height) > LONGEST_SIDE:
        raise PageError("page_too_large", megapixels=limits.megapixels, side=LONGEST_SIDE)


def grey(image: Image.Image) -> Image.Image:
    """In mode L: what shines through is white, and deep colours are stretched to eight bits."""
    if image.mode.startswith(_SIXTEEN_BITS):
        return _stretched(image)
    if image.mode in {"La", "RGBa"}:  # colours already multiplied by their opacity
        image = image.convert("LA" if image.mode == "La" else "RGBA")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    if "A" in image.getbands() and image.mode != "LAB":
        white = Image.new("L", image.size, WHITE)
        white.paste(image.convert("L"), mask=image.getchannel("A"))
        return white
    if image.mode == "LAB":
        return image.getchannel("L")
    if image.mode in {"CMYK", "HSV"}:
        image = image.convert("RGB")
    return image.convert("L")


def is_blank(image: Image.Image) -> bool:
    """Whether a grey image is of one shade."""
    values = np.asarray(image)
    return int(values.max()) - int(values.min()) < _ONE_SHADE


def normalise_lighting(image: Image.Image) -> Image.Image | None:
    """With the same light everywhere, where a shadow lies on the paper; None where none does.

    Every pixel is divided by the shade of the paper around it, which is the brightest near by. With
    that, one threshold for the whole page finds the text, which else drowns in the shadow.
    """
    small = image.reduce(max(1, min(image.size) // _PAPER_TILES))
    paper = small.filter(ImageFilter.MaxFilter(9)).filter(ImageFilter.MedianFilter(9))
    dark, bright = np.percentile(np.asarray(paper), (5, 95))
    if bright < _DARKEST_PAPER or dark > _UNEVEN * bright:
        return None
    around = np.asarray(paper.resize(image.size, Image.Resampling.BILINEAR), dtype=np.uint16)
    light = np.asarray(image, dtype=np.uint16) * np.uint16(WHITE) // np.maximum(around, 1)
    return Image.fromarray(np.minimum(light, WHITE).astype(np.uint8))


@contextlib.contextmanager
def _opened(path: str, kind: str, limits: OcrLimits, code: str) -> Iterator[Image.Image]:
    """A file's header, read; every error of the decoder as a fault."""
    # Pillow refuses what has more than twice its limit, before it decodes, and warns above the limit.
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[kind]) as image:
            yield image
    except Image.DecompressionBombError:
        raise PageError("page_too_large", megapixels=limits.megapixels, side=LONGEST_SIDE) from None
    except (PageError, MemoryError):
        raise
    except Exception:  # decoders raise what they like: OSError, SyntaxError, struct.error, …
        raise PageError(code) from None


def _stretched(image: Image.Image) -> Image.Image:
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if high <= low:
        return Image.new("L", image.size, WHITE)
    values -= low
    values *= WHITE / (high - low)
    return Image.fromarray(values.astype(np.uint8))


def _stated_dpi(image: Image.Image) -> int | None:
    lowest, highest = _STATED_DPI
    stated = image.info.get("dpi", (0, 0))[0]
    # A NaN compares as neither.
    return round(float(stated)) if lowest <= float(stated) <= highest else None
