"""Detection of text layers of PDF pages that are usable as their text."""

from __future__ import annotations

import pytest

from inference.ocr.text_layer import clean_text, is_garbage, text_layer_is_usable

PROSE = "In the beginning God created the heaven and the earth. And the earth was without form. "


@pytest.mark.parametrize(
    ("text", "image_share", "visible", "usable"),
    [
        pytest.param(PROSE, 0.0, 1.0, True, id="born digital"),
        pytest.param("Contents 7", 0.0, 1.0, True, id="little text, no image"),
        pytest.param("", 0.0, 0.0, False, id="no text: outlines, or blank"),
        pytest.param(" \n", 0.0, 1.0, False, id="white space"),
        pytest.param(PROSE, 0.5, 1.0, True, id="illustrated"),
        pytest.param("Downloaded 2026-11-26", 1.0, 1.0, False, id="a scan with a stamp"),
        pytest.param(PROSE * 20, 1.0, 0.0, False, id="a scan with invisible OCR text"),
        pytest.param(PROSE * 20, 1.0, 0.02, False, id="the same, and a visible stamp"),
        pytest.param(PROSE * 20, 1.0, 1.0, True, id="text over a background image"),
        pytest.param("\ufffd" * 30 + PROSE, 0.0, 1.0, False, id="lost characters"),
    ],
)
def test_text_layer_is_usable_unless_page_is_a_scan(
    text: str, image_share: float, visible: float, *, usable: bool
) -> None:
    assert text_layer_is_usable(text, image_share, visible) is usable


@pytest.mark.parametrize(
    ("text", "garbage"),
    [
        (PROSE, False),
        ("Im Anfang schuf Gott Himmel und Erde; und die Erde war wüst und leer, und es war", False),
        (
            "Na počátku stvořil Bůh nebe a zemi. Země pak byla pustá a prázdná, a tma byla nad",
            False,
        ),
        ("Na początku Bóg stworzył niebo i ziemię. Ziemia zaś była bezładem i pustkowiem", False),
        ("В начале сотворил Бог небо и землю. Земля же была безвидна и пуста", False),  # noqa: RUF001
        ("起初神創造天地。地是空虛混沌。淵面黑暗。神的靈運行在水面上。", False),
        ("1,204.50  33 %  2026-11-26  17:40  (12)  +4.4  0.001  88/91", False),
        ("HTTP TLS XML JSON", False),
        ("7KH TXLFN EURZQ IR[ MXPSHG RYHU WKH OD]\\ GRJ " * 2, True),  # shifted by 29
        ("Wkh txlfn eurzq ira mxpshg ryhu wkh odcb grj dqg udq dzdb" * 2, True),
        ("\ue001\ue002\ue003 \ue004\ue005", True),
        ("\x01\x02\x03\x04 text", True),
    ],
)
def test_garbage_is_distinguished_from_languages_and_numbers(text: str, *, garbage: bool) -> None:
    assert is_garbage(text) is garbage


def test_text_is_cleaned() -> None:
    assert clean_text(" a\r\nb\rc\x00\x01\ufffe \u00adshy\n") == "a\nb\nc shy"
    assert clean_text("\ud83d\udca1 in halves") == "💡 in halves"
    assert clean_text("a lone \ud83d") == "a lone"
