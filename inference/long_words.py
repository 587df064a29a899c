"""WordPiece tokenizers turn a word beyond a fixed length into one unknown token, losing its text.

A script written without spaces, a long address or an encoded blob would so be embedded as nothing,
with no sign of it. Spaces put into such words keep them readable to the model; texts without such a
word, nearly all, pass unchanged.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

EXPANSION = 4
"""Most code points one character becomes in canonical decomposition, which the tokenizers apply
before they measure a word (Unicode, UAX 15: factor 4 for NFD in UTF-32, U+1F82 for one)."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A text with spaces put in; `breaks` are their places in the original, ascending."""

    text: str
    breaks: tuple[int, ...] = ()

    def original(self, offset: int) -> int:
        """The original's offset for an offset into `text`."""
        if not self.breaks:
            return offset
        # The k-th space, put before the original's character breaks[k], stands at breaks[k] + k.
        passed = bisect_left(range(len(self.breaks)), offset, key=lambda k: self.breaks[k] + k)
        return offset - passed


def break_long_words(text: str, longest_word: int | None) -> Broken:
    """Put spaces into words of more than `longest_word` characters.

    A word ends at white space and ASCII punctuation, as in BERT's pre-tokenizer.
    """
    if longest_word is None:
        return Broken(text)
    breaks: list[int] = []
    for match in _candidates(longest_word).finditer(text):
        word = match.group()
        size = len(word) if word.isascii() else len(unicodedata.normalize("NFD", word))
        if size > longest_word:
            # Short enough for any script; and the tokenizers' time grows with a word's square.
            step = max(1, longest_word // EXPANSION)
            breaks.extend(range(match.start() + step, match.end(), step))
    if not breaks:
        return Broken(text)
    edges = [0, *breaks, len(text)]
    pieces = (text[a:b] for a, b in pairwise(edges))
    return Broken(" ".join(pieces), tuple(breaks))


@lru_cache
def _candidates(longest_word: int) -> re.Pattern[str]:
    shortest = longest_word // EXPANSION + 1
    return re.compile(r"[^\s!-/:-@\[-`{-~]{" + str(shortest) + ",}")
