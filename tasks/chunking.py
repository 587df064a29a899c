"""Chunking: cuts a text into pieces that fit an embedding model, at sentence and paragraph ends.

Every character that is not white space at a piece's edge is in exactly one piece: pieces do not
overlap, since each overlapping token would be embedded twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from semantic_text_splitter import TextSplitter

from inference.device.tokenizer import break_long_words
from inference.errors import TooLong
from inference.protocol import EmbeddingModel

CHUNKING_VERSION: Final = 1
"""Raise it when the same text would be cut differently; documents are then indexed again."""

SLACK_TOKENS: Final = 2
"""Tokens kept free: a piece may count one or two more with its prefix than without."""

WINDOW: Final = 16_384
"""Characters passed to the splitter at once. It holds the GIL for up to a microsecond a character, and
its time grows faster than the text does."""


@dataclass(frozen=True, slots=True)
class Span:
    """One piece: `text == whole[start:end]`, offsets in characters.

    Attributes:
        tokens: as the model counts them, prefix and special tokens included.
    """

    start: int
    end: int
    text: str
    tokens: int


class Chunker:
    """Cuts texts for one model. Safe to call from several threads."""

    def __init__(self, backend: EmbeddingModel) -> None:
        self._backend = backend
        (overhead,) = backend.count_tokens([""])
        self._capacity = max(1, backend.max_tokens - overhead - SLACK_TOKENS)
        tokenizer = backend.tokenizer
        # The splitter counts without special tokens and prefix; `overhead` has both.
        self._splitter = (
            TextSplitter.from_huggingface_tokenizer(tokenizer, self._capacity)
            if tokenizer is not None
            else TextSplitter.from_callback(self._content_tokens, self._capacity)
        )
        self._overhead = overhead

    def split(self, texts: Sequence[str]) -> list[list[Span]]:
        """Cut each text; a text of white space has no piece.

        Raises:
            TooLong: a single character is longer than the model reads.
            BadRequest: a text is not valid Unicode.
        """
        edges = [_trimmed(text, 0, len(text)) for text in texts]
        short = [index for index, (a, b) in enumerate(edges) if 0 < b - a <= WINDOW]
        counts = self._backend.count_tokens([texts[index][slice(*edges[index])] for index in short])
        tokens = dict(zip(short, counts, strict=True))
        spans: list[list[Span]] = []
        for index, (text, (start, end)) in enumerate(zip(texts, edges, strict=True)):
            if start == end:
                spans.append([])
            elif tokens.get(index, self._backend.max_tokens + 1) <= self._backend.max_tokens:
                spans.append([Span(start, end, text[start:end], tokens[index])])
            else:
                spans.append(self._split_long(text, start, end))
        return spans

    def _split_long(self, text: str, start: int, end: int) -> list[Span]:
        pieces = [
            piece for window in _windows(text, start, end) for piece in self._cut(text, *window)
        ]
        spans: list[Span] = []
        # Counted again, whole and with the prefix: a piece that is too long is halved.
        while pieces:
            counts = self._backend.count_tokens([text[a:b] for a, b in pieces])
            spans += [
                Span(a, b, text[a:b], count)
                for (a, b), count in zip(pieces, counts, strict=True)
                if count <= self._backend.max_tokens
            ]
            pieces = [
                half
                for (a, b), count in zip(pieces, counts, strict=True)
                if count > self._backend.max_tokens
                for half in _halves(text, a, b)
            ]
        spans.sort(key=lambda span: span.start)
        return spans

    def _cut(self, text: str, start: int, end: int) -> list[tuple[int, int]]:
        broken = break_long_words(text[start:end], self._backend.longest_word)
        try:
            chunks = self._splitter.chunk_indices(broken.text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # Rust's, and no subclass of Exception
                raise
            return [(start, end)]
        pieces = [
            (
                start + broken.original(offset),
                start + broken.original(offset + len(piece)),
            )
            for offset, piece in chunks
        ]
        return [span for a, b in pieces if (span := _trimmed(text, a, b))[0] < span[1]]

    def _content_tokens(self, text: str) -> int:
        return self._backend.count_tokens([text])[0] - self._overhead


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The range without white space at its edges."""
    part = text[start:end]
    left = len(part) - len(part.lstrip())
    right = len(part.rstrip())
    return (start + left, start + right) if left < right else (start, start)


def _windows(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Cut into ranges of at most WINDOW, after a paragraph, line, sentence or word if one ends."""
    windows: list[tuple[int, int]] = []
    while end - start > WINDOW:
        stop = start + WINDOW
        for separator in ("\n\n", "\n", ". ", " "):
            position = text.rfind(separator, start + WINDOW // 2, stop)
            if position >= 0:
                stop = position + len(separator)
                break
        windows.append((start, stop))
        start = stop
    windows.append((start, end))
    return windows


def _halves(text: str, start: int, end: int) -> list[tuple[int, int]]:
    if end - start < 2:  # noqa: PLR2004 - one character has no halves
        raise TooLong("a single character is longer than the model reads; use another model")
    middle = (start + end) // 2
    space = text.rfind(" ", start + 1, middle)
    middle = space if space > 0 else middle
    halves = (_trimmed(text, start, middle), _trimmed(text, middle, end))
    return [(a, b) for a, b in halves if a < b]
