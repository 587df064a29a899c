"""Whether the text that a PDF page carries is the page's text. Pure.

It is not where the page is a picture: a scan without text, with the stamp of an archive on it, or with
invisible text that some other program guessed. And it is not where it cannot be understood: fonts that
do not say which letters their shapes are.

Where in doubt the page is rendered and read, which costs time and is never wrong about its source.
"""

from __future__ import annotations

import unicodedata
from typing import Final

MOSTLY_PICTURE: Final = 0.6
"""From this share of its area under images a page is taken for a scan, unless it shows much text."""
STAMP: Final = 300
"""Characters up to which the text on a scan is taken for a stamp or a footer."""
MEANINGLESS: Final = 0.05
"""Share of characters without meaning from which the text is taken for garbage."""
VOWELS: Final = 0.2
"""Least share of vowels among Latin letters. Natural languages have 0.35 or more; letters shifted by a
font without an encoding have about 0.1."""
_ENOUGH: Final = 50
"""Latin letters from which that is judged."""
_SOFT_HYPHEN: Final = "\u00ad"


def is_the_pages_text(text: str, pictures: float, visible: float) -> bool:
    """Whether to take a text layer for the text of its page.

    Args:
        text: of the layer.
        pictures: share of the page's area that lies under images, 0 to 1.
        visible: share of the layer's characters that are painted, 0 to 1.
    """
    characters = sum(not character.isspace() for character in text)
    if characters == 0 or is_garbage(text):
        return False
    return pictures < MOSTLY_PICTURE or visible * characters > STAMP


def is_garbage(text: str) -> bool:
    """Whether a text has too many characters without meaning, or no vowels to speak of."""
    characters = [character for character in text if not character.isspace()]
    odd = sum(_is_meaningless(character) for character in characters)
    if odd > MEANINGLESS * len(characters):
        return True
    letters = [c for c in unicodedata.normalize("NFKD", text.lower()) if "a" <= c <= "z"]
    if len(letters) < _ENOUGH or len(letters) < len(characters) / 2:
        return False
    return sum(letter in "aeiouy" for letter in letters) < VOWELS * len(letters)


def cleaned(text: str) -> str:
    """With plain line ends, without hyphens that do not show and characters of control."""
    # pdfium counts in UTF-16: what takes two units of it may come in halves.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = text.replace(_SOFT_HYPHEN, "")
    return "".join(c for c in text if not _is_meaningless(c)).strip()


def _is_meaningless(character: str) -> bool:
    """Control characters, private ones, unassigned ones, and the mark of those that were lost."""
    if character == "\ufffd":
        return True
    return unicodedata.category(character) in {"Cc", "Co", "Cn", "Cs"} and character not in "\n\t\r"
