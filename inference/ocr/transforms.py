"""Rotation, deskewing and scaling of a page's image, with the mapping back to the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import cos, radians, sin
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Affine = tuple[float, float, float, float, float, float]
"""`(a, b, c, d, e, f)`: x' = ax + by + c, y' = dx + ey + f. PIL's order."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""

IDENTITY: Final[Affine] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
WHITE: Final = 255

_TRANSPOSES: Final = {
    90: Image.Transpose.ROTATE_270,  # PIL rotates anticlockwise
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_90,
}
_SKEW_SIDE: Final = 800
"""Pixels of the longer side of the image in which the skew is measured."""
_SKEW_RANGE: Final = 15.0
_SKEW_POINTS: Final = 40_000
_MIN_GAIN: Final = 1.2
"""Least ratio of the lines' contrast after deskewing to that before; below it the skew counts as 0."""
_MIN_DARK: Final = 50


@dataclass(frozen=True, slots=True)
class PageImage:
    """A grey image, and the mapping of its pixels to the page.

    Attributes:
        image: mode L.
        width: of the page, in the page's unit.
        height: of the page.
        to_page: from pixels of the image to the page.
    """

    image: Image.Image = field(repr=False)
    width: float
    height: float
    to_page: Affine = IDENTITY

    def box(self, box: Box) -> Box:
        """The axis-parallel box on the page around a box of the image, clipped to the page."""
        a, b, c, d, e, f = self.to_page
        left, top, right, bottom = box
        corners = [(x, y) for x in (left, right) for y in (top, bottom)]
        xs = [min(max(a * x + b * y + c, 0.0), self.width) for x, y in corners]
        ys = [min(max(d * x + e * y + f, 0.0), self.height) for x, y in corners]
        return min(xs), min(ys), max(xs), max(ys)

    def rotated(self, degrees: int) -> PageImage:
        """Rotated clockwise by 0, 90, 180 or 270 degrees."""
        if degrees == 0:
            return self
        width, height = self.image.size
        back: dict[int, Affine] = {
            90: (0, 1, 0, -1, 0, height),
            180: (-1, 0, width, 0, -1, height),
            270: (0, -1, width, 1, 0, 0),
        }
        return self._transformed(self.image.transpose(_TRANSPOSES[degrees]), back[degrees])

    def deskewed(self, degrees: float) -> PageImage:
        """Rotated clockwise by a few degrees, on a white background that holds all of it."""
        width, height = self.image.size
        c, s = cos(radians(degrees)), sin(radians(degrees))
        new_width = int(abs(width * c) + abs(height * s)) + 1
        new_height = int(abs(width * s) + abs(height * c)) + 1
        # From the centre of the new image to the centre of the old one, rotated back.
        back: Affine = (
            c,
            s,
            width / 2 - c * new_width / 2 - s * new_height / 2,
            -s,
            c,
            height / 2 + s * new_width / 2 - c * new_height / 2,
        )
        image = self.image.transform(
            (new_width, new_height),
            Image.Transform.AFFINE,
            back,
            resample=Image.Resampling.BICUBIC,
            fillcolor=WHITE,
        )
        return self._transformed(image, back)

    def enlarged(self, factor: int) -> PageImage:
        """Enlarged by a factor."""
        width, height = self.image.size
        size = (width * factor, height * factor)
        image = self.image.resize(size, Image.Resampling.BICUBIC)
        return self._transformed(image, (1 / factor, 0, 0, 0, 1 / factor, 0))

    def _transformed(self, image: Image.Image, back: Affine) -> PageImage:
        return PageImage(image, self.width, self.height, compose(self.to_page, back))


def compose(outer: Affine, inner: Affine) -> Affine:
    """The mapping that applies `inner`, then `outer`."""
    a, b, c, d, e, f = outer
    g, h, i, j, k, m = inner
    return (
        a * g + b * j,
        a * h + b * k,
        a * i + b * m + c,
        d * g + e * j,
        d * h + e * k,
        d * i + e * m + f,
    )


def skew(image: Image.Image) -> float:
    """Degrees clockwise that make the lines of an image horizontal, up to 15; 0 if unsure.

    Horizontal lines have white rows between them: of several angles, the result is the one at which the
    number of dark points changes most from row to row.
    """
    small = image.reduce(max(1, max(image.size) // _SKEW_SIDE))
    grey = np.asarray(small, dtype=np.uint8)
    low, high = int(grey.min()), int(grey.max())
    ys, xs = np.nonzero(grey < (low + high) / 2)
    if len(xs) < _MIN_DARK:
        return 0.0
    step = max(1, len(xs) // _SKEW_POINTS)
    points = np.stack((xs[::step], ys[::step])).astype(np.float32)
    unrotated = _contrast(points, 0.0)
    angles = np.arange(-_SKEW_RANGE, _SKEW_RANGE + 0.5, 1.0)
    coarse = max(angles, key=lambda angle: _contrast(points, angle))
    angles = np.arange(coarse - 0.9, coarse + 0.95, 0.1)
    fine = max(angles, key=lambda angle: _contrast(points, angle))
    is_sure = _contrast(points, fine) > _MIN_GAIN * unrotated and abs(fine) < _SKEW_RANGE
    return round(float(fine), 1) if is_sure else 0.0


def _contrast(points: NDArray[np.float32], degrees: float) -> float:
    angle = radians(degrees)
    rows = points[0] * np.float32(sin(angle)) + points[1] * np.float32(cos(angle))
    counts = np.bincount((rows - rows.min()).astype(np.int32))
    return float(np.square(np.diff(counts.astype(np.float64))).sum())
