"""Rotated and deskewed images, and the mapping of boxes back to the page."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from inference.ocr.transforms import Box, PageImage, compose, skew
from tests.page_files import drawn

INK: Box = (50.0, 60.0, 81.0, 71.0)


def page() -> PageImage:
    image = Image.new("L", (300, 200), 255)
    ImageDraw.Draw(image).rectangle((50, 60, 80, 70), fill=0)
    return PageImage(image, 300, 200)


def ink(image: Image.Image) -> Box:
    box = image.point(lambda value: 255 if value < 128 else 0).getbbox()
    assert box is not None
    left, top, right, bottom = box
    return float(left), float(top), float(right), float(bottom)


@pytest.mark.parametrize(
    ("image", "off"),
    [
        (page(), 0),
        (page().rotated(0), 0),
        (page().rotated(90), 0),
        (page().rotated(180), 0),
        (page().rotated(270), 0),
        (page().enlarged(2), 0),
        (page().enlarged(2).rotated(270), 0),
        (page().deskewed(7), 5),  # the box around a slanted box is larger
        (page().deskewed(-7), 5),
        (page().enlarged(2).rotated(90).deskewed(5), 5),
    ],
)
def test_box_is_mapped_back_to_the_page(image: PageImage, off: float) -> None:
    box = image.box(ink(image.image))
    assert all(abs(a - b) <= off for a, b in zip(box, INK, strict=True)), box


def test_rotation_is_clockwise() -> None:
    assert page().rotated(90).image.size == (200, 300)
    assert ink(page().rotated(90).image) == (129.0, 50.0, 140.0, 81.0)


def test_boxes_are_in_the_unit_of_the_page() -> None:
    in_points = PageImage(page().image, 72, 48, (0.24, 0, 0, 0, 0.24, 0))
    assert in_points.rotated(180).box(ink(in_points.rotated(180).image)) == pytest.approx(
        [0.24 * side for side in INK]
    )
    assert in_points.box((-10, -10, 9999, 9999)) == (0, 0, 72, 48)


def test_mappings_are_composed() -> None:
    assert compose((2, 0, 1, 0, 2, 1), (0, 1, 5, 1, 0, 7)) == (0, 2, 11, 2, 0, 15)


@pytest.mark.parametrize("degrees", [-13.0, -7.0, -2.5, 0.0, 1.0, 3.3, 9.0])
def test_skew_is_measured(degrees: float) -> None:
    lines = drawn(*["The quick brown dog jumped over the lazy fox."] * 12, size=(900, 900))
    slanted = lines.rotate(degrees, expand=True, fillcolor=255, resample=Image.Resampling.BICUBIC)
    assert skew(slanted) == pytest.approx(degrees, abs=0.35)


def test_image_without_horizontal_lines_has_no_skew() -> None:
    lines = drawn(*["The quick brown dog jumped over the lazy fox."] * 12, size=(900, 900))
    assert abs(skew(lines.rotate(90))) < 1
    assert skew(Image.new("L", (500, 500), 255)) == 0
    assert skew(Image.new("L", (1, 1), 0)) == 0
