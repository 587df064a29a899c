"""Loads the pages of image files as grey images of dark text on white."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from inference.ocr.config import MAX_SIDE, OcrLimits
from inference.ocr.errors import PageError
from inference.ocr.transforms import WHITE

_DEEP_MODES: Final = ("I", "F")
"""Modes of more than eight bits a pixel, by their first letter."""
_PLAUSIBLE_DPI: Final = (100, 1200)
"""Stated resolutions that are used: programs write 72 or 96 if they do not know it."""
_PAPER_TILES: Final = 200
"""Tiles along the shorter side in which the paper's shade is measured."""
_UNEVEN: Final = 0.85
"""Lighting is corrected if the paper's dark parts have less than this share of its bright parts'
brightness."""
_DARKEST_PAPER: Final = 100
_BLANK_RANGE: Final = 16
"""Of 255: the range that JPEG compression may make of a single shade."""


def page_count(path: str, kind: str, limits: OcrLimits) -> int:
    """Number of pages of a TIFF; 1 for other kinds, whose first picture is read if they are animated.

    Raises:
        PageError: it cannot be opened, or is too large.
    """
    with _opened(path, kind, limits, "unreadable_file") as image:
        # Follows the whole chain of directories in the file; Pillow stops at a cycle.
        return int(getattr(image, "n_frames", 1)) if kind == "tiff" else 1


def page(path: str, kind: str, number: int, limits: OcrLimits) -> tuple[Image.Image, int | None]:
    """One page as a grey image, rotated by its EXIF orientation, and its resolution if stated.

    Args:
        path: of the file.
        kind: as `vestry.jobs.ocr.file_kind` returns it; no other decoder is tried.
        number: from 1.
        limits: checked before decoding.

    Raises:
        PageError: it cannot be decoded, or is too large.
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
    """Check the size of a page.

    Raises:
        PageError: it is too large, or empty.
    """
    if width < 1 or height < 1:
        raise PageError("damaged_page")
    if width * height > limits.pixels or max(width, height) > MAX_SIDE:
        raise PageError("page_too_large", megapixels=limits.megapixels, side=MAX_SIDE)


def grey(image: Image.Image) -> Image.Image:
    """In mode L: transparent parts become white, deeper modes are scaled to eight bits."""
    if image.mode.startswith(_DEEP_MODES):
        return _stretched(image)
    if image.mode in {"La", "RGBa"}:  # premultiplied alpha
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
    """Whether a grey image has a single shade."""
    values = np.asarray(image)
    return int(values.max()) - int(values.min()) < _BLANK_RANGE


def normalise_lighting(image: Image.Image) -> Image.Image | None:
    """Correct uneven lighting, such as a shadow on the paper; None if the lighting is even.

    Every pixel is divided by the shade of the paper around it, the brightest in its neighbourhood. Then
    one threshold for the whole page separates the text, which is otherwise lost in the shadow.
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
    """An image with its header read; every error of the decoder becomes a PageError."""
    # Pillow refuses images of more than twice its limit before it decodes, and warns above the limit.
    Image.MAX_IMAGE_PIXELS = limits.pixels // 2
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=[kind]) as image:
            yield image
    except Image.DecompressionBombError:
        raise PageError("page_too_large", megapixels=limits.megapixels, side=MAX_SIDE) from None
    except (PageError, MemoryError):
        raise
    except Exception:  # decoders raise OSError, SyntaxError, struct.error, …
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
    lowest, highest = _PLAUSIBLE_DPI
    stated = image.info.get("dpi", (0, 0))[0]
    # False for NaN.
    return round(float(stated)) if lowest <= float(stated) <= highest else None
