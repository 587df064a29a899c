"""Texts whose right labels are known, and the labels to choose from."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.classifiers.bible_references import normalised
from vestry import Label
from workers.home import CHECKOUT

SEED = 1660
WORDS_LEAST = 8
"""A verse of fewer words says little of its book."""

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
"""Of each kind of book: what it is about, books that examples are taken from, and books that none is
taken from. John shares few verses with the other gospels."""

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
"""Of each language's twenty sentences, the first so many are examples."""


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and the labels that fit it."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Task:
    """Labels to choose from, and texts none of which is among their examples."""

    labels: tuple[Label, ...]
    texts: tuple[Labelled, ...]

    @property
    def names(self) -> list[str]:
        """The labels' names."""
        return [label.name for label in self.labels]


def verses(file: Path, examples: int, texts: int) -> dict[str, Task] | None:
    """Verses to be told by the kind of their book; None where the file has too few.

    Args:
        file: `REFERENCE text` lines.
        examples: of each kind.
        texts: of each kind.

    Returns:
        `same books`: other verses of the books that the examples are from, by a seeded sample;
        `other books`: verses of books that no example is from.
    """
    of_book: dict[str, list[str]] = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        reference, _, text = line.partition(" ")
        usual = normalised(reference)
        if usual is not None and len(text.split()) >= WORDS_LEAST:
            of_book[usual.rpartition(" ")[0]].append(text)
    chance = random.Random(SEED)  # noqa: S311 - the same verses every time
    labels: list[Label] = []
    same: list[Labelled] = []
    other: list[Labelled] = []
    for name, (about, known, unknown) in GENRES.items():
        here = [text for book in known for text in of_book[book]]
        there = [text for book in unknown for text in of_book[book]]
        if len(here) < examples + texts or len(there) < texts:
            return None
        drawn = chance.sample(here, examples + texts)
        labels.append(Label(name, about, drawn[:examples]))
        same += [Labelled(text, (name,)) for text in drawn[examples:]]
        other += [Labelled(text, (name,)) for text in chance.sample(there, texts)]
    return {
        "same books": Task(tuple(labels), tuple(same)),
        "other books": Task(tuple(labels), tuple(other)),
    }


def topics() -> Task:
    """Sentences of a journal; some are about two or three topics, some about none."""
    labels = tuple(Label(name, about) for name, about in TOPICS.items())
    rows = _sample("topics.jsonl")
    return Task(labels, tuple(Labelled(row["text"], tuple(row["labels"])) for row in rows))


def sentences() -> Task:
    """Sentences of ten words and more in ten languages."""
    rows = _sample("sentences.jsonl")
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
    return Task(labels, tuple(Labelled(row["text"], (row["language"],)) for row in others))


def _sample(name: str) -> list[dict[str, object]]:
    text = (CHECKOUT / "samples" / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]
