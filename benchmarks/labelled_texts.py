"""Texts with known labels, and the candidate labels."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inference.classifiers.bible_references import normalised
from vestry import Label
from workers.home import CHECKOUT

SEED = 1660
MIN_WORDS = 8
"""Fewest words of a verse: a shorter one is not characteristic of its book."""

GENRES: Mapping[str, tuple[str, Sequence[str], Sequence[str]]] = {
    "law": (
        "commandments, offerings, priests and the rules given to Israel through Moses",
        ("Leviticus", "Numbers"),
        ("Deuteronomy",),
    ),
    "poetry": (
        (
            "psalms, songs, prayers and proverbs; praise, lament and wisdom about the righteous and "
            "the wicked"
        ),
        ("Psalm", "Proverbs"),
        ("Job", "Ecclesiastes", "Song of Songs"),
    ),
    "gospel": (
        "the life of Jesus: his teaching, parables, miracles and disciples, his trial and death",
        ("Matthew", "Mark", "Luke"),
        ("John",),
    ),
    "letter": (
        "an apostle writing to a church about faith, grace, love and how Christians should live",
        ("Romans", "1 Corinthians", "2 Corinthians", "Galatians", "Ephesians"),
        ("Philippians", "Hebrews", "James", "1 Peter", "1 John"),
    ),
    "prophecy": (
        "a prophet announcing God's judgement on nations and cities, and their restoration",
        ("Isaiah", "Jeremiah"),
        ("Ezekiel", "Hosea", "Amos", "Micah"),
    ),
}
"""For each kind of book: its description, books from which examples are taken, and books without
examples. John shares few verses with the other gospels."""

TOPICS: Mapping[str, str] = {
    "health": "illness, pain, doctors, medicine and recovery",
    "work": "a job, colleagues, meetings, deadlines and careers",
    "family": "parents, children, siblings, marriage and relatives",
    "faith": "prayer, church, scripture, God and doubt",
    "money": "income, debts, savings, bills and prices",
    "travel": "journeys, trains, flights, hotels and foreign places",
    "nature": "weather, gardens, animals, mountains and the sea",
    "food": "cooking, meals, recipes, restaurants and baking",
}
LANGUAGES: Mapping[str, str] = {
    "de": "German", "en": "English", "es": "Spanish", "fr": "French", "it": "Italian",
    "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ru": "Russian", "sv": "Swedish",
}  # fmt: skip
LANGUAGE_EXAMPLES = 5
"""Number of each language's twenty sentences, from the first, that are examples."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text and its true labels."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Candidate labels, and texts to classify, which are not among the labels' examples."""

    labels: tuple[Label, ...]
    texts: tuple[LabelledText, ...]

    @property
    def names(self) -> list[str]:
        """The labels' names."""
        return [label.name for label in self.labels]


def verses(file: Path, examples: int, texts: int) -> dict[str, Task] | None:
    """Verses to classify by the kind of their book.

    Args:
        file: `REFERENCE text` lines.
        examples: examples of each kind.
        texts: texts of each kind.

    Returns:
        `same books`: a seeded sample of verses from the examples' books; `other books`: verses from
        books without examples. None if the file has too few verses.
    """
    verses_of_book: dict[str, list[str]] = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        reference, _, text = line.partition(" ")
        canonical = normalised(reference)
        if canonical is not None and len(text.split()) >= MIN_WORDS:
            verses_of_book[canonical.rpartition(" ")[0]].append(text)
    rng = random.Random(SEED)  # noqa: S311 - a reproducible sample
    labels: list[Label] = []
    same: list[LabelledText] = []
    other: list[LabelledText] = []
    for name, (about, example_books, other_books) in GENRES.items():
        example_verses = [text for book in example_books for text in verses_of_book[book]]
        other_verses = [text for book in other_books for text in verses_of_book[book]]
        if len(example_verses) < examples + texts or len(other_verses) < texts:
            return None
        sample = rng.sample(example_verses, examples + texts)
        labels.append(Label(name, about, sample[:examples]))
        same += [LabelledText(text, (name,)) for text in sample[examples:]]
        other += [LabelledText(text, (name,)) for text in rng.sample(other_verses, texts)]
    return {
        "same books": Task(tuple(labels), tuple(same)),
        "other books": Task(tuple(labels), tuple(other)),
    }


def topics() -> Task:
    """Sentences of a journal; some have two or three topics, some have none."""
    labels = tuple(Label(name, about) for name, about in TOPICS.items())
    rows = _read_sample("topics.jsonl")
    return Task(labels, tuple(LabelledText(row["text"], tuple(row["labels"])) for row in rows))


def sentences() -> Task:
    """Sentences of ten words or more in ten languages."""
    rows = _read_sample("sentences.jsonl")
    labels = tuple(
        Label(
            code,
            f"a text in {name}",
            [
                row["text"]
                for row in rows
                if row["language"] == code and row["sentence"] <= LANGUAGE_EXAMPLES
            ],
        )
        for code, name in LANGUAGES.items()
    )
    others = [row for row in rows if row["sentence"] > LANGUAGE_EXAMPLES]
    return Task(labels, tuple(LabelledText(row["text"], (row["language"],)) for row in others))


def _read_sample(name: str) -> list[dict[str, Any]]:
    text = (CHECKOUT / "samples" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
