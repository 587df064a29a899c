"""Decides whether a PDF page's text layer is the text of the page. Pure.

A text layer is not used if the page is a picture (a scan without text, with an archive's stamp, or with
another OCR program's invisible text) or if its fonts do not map shapes to letters.

In doubt the page is rendered and read: slower, but always the text that the page shows.
"""

from __future__ import annotations

import unicodedata
from typing import Final

SCAN_IMAGE_SHARE: Final = 0.6
"""With this share of its area under images a page counts as a scan, unless it has much visible text."""
STAMP_CHARACTERS: Final = 300
"""Up to this many characters, the text on a scan counts as a stamp or a footer."""
MAX_MEANINGLESS: Final = 0.05
"""Share of meaningless characters beyond which a text counts as garbage."""
MIN_VOWELS: Final = 0.2
"""Least share of vowels among Latin letters. Natural languages have 0.35 or more; letters shifted by a
font without an encoding have about 0.1."""
_MIN_LETTERS: Final = 50
"""Latin letters that are needed for the test of vowels."""
_SOFT_HYPHEN: Final = "\u00ad"


def text_layer_is_usable(text: str, image_share: float, visible: float) -> bool:
    """Whether to use a text layer as the text of its page.

    Args:
        text: the layer's text.
        image_share: share of the page's area under images, 0 to 1.
        visible: share of the layer's characters that are painted, 0 to 1.
    """
    characters = sum(not character.isspace() for character in text)
    if characters == 0 or is_garbage(text):
        return False
    return image_share < SCAN_IMAGE_SHARE or visible * characters > STAMP_CHARACTERS


def is_garbage(text: str) -> bool:
    """Whether a text has too many meaningless characters, or too few vowels."""
    characters = [character for character in text if not character.isspace()]
    meaningless = sum(_is_meaningless(character) for character in characters)
    if meaningless > MAX_MEANINGLESS * len(characters):
        return True
    letters = [c for c in unicodedata.normalize("NFKD", text.lower()) if "a" <= c <= "z"]
    if len(letters) < _MIN_LETTERS or len(letters) < len(characters) / 2:
        return False
    return sum(letter in "aeiouy" for letter in letters) < MIN_VOWELS * len(letters)


def clean_text(text: str) -> str:
    """A text with plain line ends, without soft hyphens and control characters."""
    # pdfium returns UTF-16 units: a character of two units comes in halves.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace(_SOFT_HYPHEN, "")
    return "".join(c for c in text if not _is_meaningless(c)).strip()


def _is_meaningless(character: str) -> bool:
    """Control, private-use and unassigned characters, lone surrogates, the replacement character."""
    if character == "\ufffd":
        return True
    return unicodedata.category(character) in {"Cc", "Co", "Cn", "Cs"} and character not in "\n\t\r"
