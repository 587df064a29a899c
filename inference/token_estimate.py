"""About how many tokens a text has, for models whose tokenizer is on another machine."""

from __future__ import annotations

import re
from typing import Final

CHARACTERS_PER_TOKEN: Final = 4
"""Of a word of plain letters. Tokenizers of English come to 4.2 and more, words alone to 3.5."""

_PIECES: Final = re.compile(r"[A-Za-z]+|[0-9]+|[^\x00-\x7f]+|[^\sA-Za-z0-9]")


def estimate_tokens(text: str) -> int:
    """Rather too many than too few for prose: punctuation and unusual letters count in full."""
    return sum(_tokens(match[0]) for match in _PIECES.finditer(text))


def _tokens(piece: str) -> int:
    if not piece.isascii():
        # At worst a token a byte; scripts with words of their own come to half of it.
        return -(-len(piece.encode("utf-8", "surrogatepass")) // 2)
    if piece.isdigit():
        return -(-len(piece) // 2)
    return -(-len(piece) // CHARACTERS_PER_TOKEN)
