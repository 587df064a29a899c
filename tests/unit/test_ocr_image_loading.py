"""Image files are loaded as greyscale images, within the limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inference.ocr import image_loading, pdf
from inference.ocr.config import OcrLimits
from inference.ocr.errors import MESSAGES, PageError
from tests.hostile_files import LINE, drawn_line, unusual_images, unusual_pdfs
from tests.page_files import drawn, encoded
from vestry.jobs.ocr import file_kind

LIMITS = OcrLimits()


@pytest.mark.parametrize(("name", "content"), list(unusual_images()))
def test_unusual_images_are_loaded(name: str, content: bytes, tmp_path: Path) -> None:
    del name
    kind = file_kind(content)
    assert kind is not None
    file = tmp_path / "page"
    file.write_bytes(content)
    assert image_loading.page_count(str(file), kind, LIMITS) == 1
    image, _ = image_loading.page(str(file), kind, 1, LIMITS)
    assert image.mode == "L"
    gold = np.asarray(drawn_line(), dtype=np.int16)
    assert image.size == drawn_line().size
    assert np.abs(np.asarray(image, dtype=np.int16) - gold).mean() < 2.5


@pytest.mark.parametrize(("name", "content"), list(unusual_pdfs()))
def test_text_layer_of_unusual_pdf_is_read(name: str, content: bytes, tmp_path: Path) -> None:
    del name
    file = tmp_path / "page"
    file.write_bytes(content)
    layer = pdf.page(str(file), 1, LIMITS, words=True, dpi=None).content
    assert isinstance(layer, pdf.TextLayer)
    assert layer.text == LINE
    assert [word for word, _ in layer.words or ()] == LINE.split()


def test_plausible_resolution_is_used(tmp_path: Path) -> None:
    for stated, used in ((300, 300), (72, None), (96, None), (10**6, None)):
        file = tmp_path / "page"
        file.write_bytes(encoded(drawn_line(), "TIFF", dpi=(stated, stated)))
        assert image_loading.page(str(file), "tiff", 1, LIMITS)[1] == used


def test_tiff_pages_are_counted_and_loaded(tmp_path: Path) -> None:
    shades = [Image.new("L", (20 + n, 10), 10 * n) for n in range(5)]
    file = tmp_path / "pages"
    file.write_bytes(encoded(shades[0], "TIFF", save_all=True, append_images=shades[1:]))
    assert image_loading.page_count(str(file), "tiff", LIMITS) == 5
    for number in (5, 1, 3):
        image, _ = image_loading.page(str(file), "tiff", number, LIMITS)
        assert image.size == (19 + number, 10)


def test_page_size_is_limited() -> None:
    limits = OcrLimits(megapixels=1)
    image_loading.check_size(1000, 1000, limits)
    for width, height in ((1001, 1000), (32_768, 1), (1, 40_000)):
        with pytest.raises(PageError) as caught:
            image_loading.check_size(width, height, limits)
        assert caught.value.code == "page_too_large"
    with pytest.raises(PageError):
        image_loading.check_size(0, 10, limits)


def test_uneven_lighting_is_corrected() -> None:
    page = np.asarray(drawn(*[LINE] * 12, size=(1000, 800)), dtype=np.float32)
    ramp = np.linspace(0.25, 1, page.shape[1], dtype=np.float32)
    shaded = Image.fromarray((page * ramp).astype(np.uint8))
    even = image_loading.normalise_lighting(shaded)
    assert even is not None
    assert (
        np.abs(np.asarray(even, dtype=np.float32) - page).mean()
        < 8
        < np.abs(np.asarray(shaded) - page).mean()
    )
    assert image_loading.normalise_lighting(drawn(LINE)) is None, "already even"
    assert (
        image_loading.normalise_lighting(Image.eval(drawn(LINE), lambda value: 255 - value)) is None
    ), "light on dark"


def test_image_of_one_shade_is_blank() -> None:
    assert image_loading.is_blank(Image.new("L", (50, 50), 17))
    dotted = Image.new("L", (50, 50), 255)
    dotted.putpixel((3, 3), 0)
    assert not image_loading.is_blank(dotted)


def test_page_error_from_worker_has_known_code_and_numbers_only() -> None:
    for code in MESSAGES:
        numbers = dict.fromkeys(_fields(MESSAGES[code]), 7)
        error = PageError.from_json({"error": code, "numbers": numbers})
        assert error.message
    for bad in (
        {"error": "the text of the page", "numbers": {}},
        {"error": "time_limit", "numbers": {"seconds": "the text of the page"}},
        {"error": "time_limit", "numbers": {}},
        {"error": ["time_limit"], "numbers": {}},
        {"error": "time_limit", "numbers": ["the text"]},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            PageError.from_json(bad)


def _fields(message: str) -> list[str]:
    return [part.partition("}")[0] for part in message.split("{")[1:]]
