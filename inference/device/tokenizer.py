"""Exact token counts by a model's own tokenizer, without the truncation and padding in its files.

WordPiece tokenizers turn a word beyond a fixed length into one unknown token, losing its text. A script
written without spaces, a long address or an encoded blob would then be embedded without its content,
and without any error. Spaces inserted into such words keep them readable to the model; texts without
such a word, nearly all, pass unchanged.
"""

from __future__ import annotations

import json
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from inference.errors import BadRequest

EXPANSION = 4
"""Most code points of one character's canonical decomposition, which the tokenizers apply before they
measure a word (Unicode, UAX 15: factor 4 for NFD in UTF-32, for example U+1F82)."""

_UNBOUNDED = 1_000_000
"""Tokenizers without a limit report 10^30; from here on, a value means no limit."""
_FALLBACK_MAX_TOKENS = 512
"""BERT's limit, if neither the model nor its tokenizer names one."""


class ModelTokenizer:
    """Counts a model's tokens exactly.

    Attributes:
        fast: the `tokenizers.Tokenizer`, or None for a tokenizer written in Python.
        longest_word: characters in a word beyond which it becomes one unknown token; None for no limit.
        max_tokens: the limit in the tokenizer's files, for models that name none.
    """

    def __init__(self, slow: Any, fast: Any | None) -> None:
        self._slow = slow
        self.fast = fast
        self.longest_word = _longest_word(fast)
        limit = int(getattr(slow, "model_max_length", None) or _UNBOUNDED)
        self.max_tokens = limit if limit < _UNBOUNDED else _FALLBACK_MAX_TOKENS

    @classmethod
    def of(cls, tokenizer: Any) -> ModelTokenizer:
        """From a transformers tokenizer; a copy is changed, not the original."""
        shared = getattr(tokenizer, "backend_tokenizer", None)
        if shared is None:
            return cls(tokenizer, None)
        from tokenizers import Tokenizer  # noqa: PLC0415 - only where a model is loaded

        fast = Tokenizer.from_str(shared.to_str())
        fast.no_truncation()
        fast.no_padding()
        return cls(tokenizer, fast)

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text with its special tokens.

        Raises:
            BadRequest: with `indices`; texts hold half a surrogate pair.
        """
        return self._count(texts)

    def count_pairs(self, pairs: Sequence[tuple[str, str]]) -> list[int]:
        """Tokens of each pair read together, with the special tokens around and between the texts.

        Raises:
            BadRequest: as `count`.
        """
        return self._count(pairs)

    def _count(self, inputs: Sequence[str] | Sequence[tuple[str, str]]) -> list[int]:
        if not inputs:
            return []
        if self.fast is not None:
            try:
                return [len(encoding) for encoding in self.fast.encode_batch_fast(list(inputs))]
            except (TypeError, UnicodeEncodeError):
                indices = [index for index, one in enumerate(inputs) if not _is_unicode(one)]
                # The original error holds the text.
                raise BadRequest("a text is not valid Unicode", indices=indices) from None
        rows = self._slow(list(inputs), add_special_tokens=True, truncation=False)["input_ids"]
        return [len(row) for row in rows]


def _is_unicode(text: Sequence[str]) -> bool:
    try:
        "".join(text).encode()
    except UnicodeEncodeError:
        return False
    return True


def _longest_word(fast: Any | None) -> int | None:
    if fast is None:
        return None
    model = json.loads(fast.to_str())["model"]
    limit = model.get("max_input_chars_per_word") if model.get("type") == "WordPiece" else None
    return int(limit) if limit else None


@dataclass(frozen=True, slots=True)
class BrokenText:
    """A text with inserted spaces; `breaks` are their offsets in the original, ascending."""

    text: str
    breaks: tuple[int, ...] = ()

    def original(self, offset: int) -> int:
        """The original's offset for an offset into `text`."""
        if not self.breaks:
            return offset
        # The k-th space, inserted before the original's character breaks[k], is at breaks[k] + k.
        spaces = bisect_left(range(len(self.breaks)), offset, key=lambda k: self.breaks[k] + k)
        return offset - spaces


def break_long_words(text: str, longest_word: int | None) -> BrokenText:
    """Insert spaces into words of more than `longest_word` characters.

    A word ends at white space and ASCII punctuation, as in BERT's pre-tokenizer.
    """
    if longest_word is None:
        return BrokenText(text)
    breaks: list[int] = []
    for match in _candidates(longest_word).finditer(text):
        word = match.group()
        size = len(word) if word.isascii() else len(unicodedata.normalize("NFD", word))
        if size > longest_word:
            # Short enough for any script; the tokenizers' time is quadratic in a word's length.
            step = max(1, longest_word // EXPANSION)
            breaks.extend(range(match.start() + step, match.end(), step))
    if not breaks:
        return BrokenText(text)
    edges = [0, *breaks, len(text)]
    pieces = (text[a:b] for a, b in pairwise(edges))
    return BrokenText(" ".join(pieces), tuple(breaks))


@lru_cache
def _candidates(longest_word: int) -> re.Pattern[str]:
    shortest = longest_word // EXPANSION + 1
    return re.compile(r"[^\s!-/:-@\[-`{-~]{" + str(shortest) + ",}")
