"""The built-in classifiers: languages of real sentences, references of the real canon."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from inference.backends import builtin
from inference.catalogue.loader import load
from inference.catalogue.schema import ModelEntry
from inference.classifiers.bible_references import MAX_CHARACTERS, books, normalised
from inference.classifiers.language_id import READ_CHARACTERS, LanguageClassifier
from inference.errors import BadRequest, ModelMissing
from inference.protocol import BackendConfig

ROOT = Path(__file__).resolve().parents[2]
SENLANGUAGESCES = [
    json.loads(line)
    for line in (ROOT / "samples" / "sentences.jsonl").read_text(encoding="utf-8").splitlines()
]
LANGUAGES = sorted({row["language"] for row in SENLANGUAGESCES})


@pytest.fixture(scope="module")
def languages() -> LanguageClassifier:
    classifier = LanguageClassifier()
    classifier.warm_up()
    return classifier


def test_language_of_ten_words_is_right_in_95_percent(languages: LanguageClassifier) -> None:
    assert len(LANGUAGES) == 10
    assert all(len(row["text"].split()) >= 10 for row in SENLANGUAGESCES)
    right = sum(
        languages.classify(row["text"], ())[0].label == row["language"] for row in SENLANGUAGESCES
    )
    assert right / len(SENLANGUAGESCES) >= 0.95


def test_scores_of_short_texts_do_not_exceed_accuracy(
    languages: LanguageClassifier,
) -> None:
    hits: dict[int, list[tuple[bool, float]]] = defaultdict(list)
    for row in SENLANGUAGESCES:
        words = row["text"].split()
        for length in (1, 2, 3):
            text = " ".join(words[:length])
            scores = languages.classify(text, LANGUAGES)
            if scores:
                hits[length].append((scores[0].label == row["language"], scores[0].score))
    means = {}
    for length, rows in hits.items():
        right, claimed = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        assert claimed <= right + 0.03, length
        means[length] = claimed
    assert means[1] < means[2] < means[3]


@pytest.mark.parametrize("text", ["", "  \n", "12:30!!", "ok", "x" * 20_000])
def test_text_without_evidence_has_no_language(languages: LanguageClassifier, text: str) -> None:
    assert languages.classify(text, ()) == ()
    assert languages.classify(text, ["en", "de"]) == ()


def test_labels_restrict_languages_and_scores_add_up_to_one(
    languages: LanguageClassifier,
) -> None:
    scores = languages.classify("Guten Morgen", ["French", "German", "en"])
    assert scores[0].label == "German"
    assert {one.label for one in scores} == {"French", "German", "en"}
    assert sum(one.score for one in scores) == pytest.approx(1, abs=1e-6)
    free = languages.classify(SENLANGUAGESCES[0]["text"], ())
    assert len(free) == len(languages.labels) >= 97
    assert sum(one.score for one in free) == pytest.approx(1, abs=1e-5)


def test_every_language_has_an_english_name(languages: LanguageClassifier) -> None:
    assert sorted(languages._by_name.values()) == sorted(languages.labels)


def test_unknown_language_is_named_by_its_index(languages: LanguageClassifier) -> None:
    with pytest.raises(BadRequest, match="label 1 is not a language") as caught:
        languages.classify("some text", ["en", "sekrit"])
    assert "sekrit" not in str(caught.value)


def test_only_the_beginning_of_a_long_text_is_read(languages: LanguageClassifier) -> None:
    german = "Das ist ein schöner Tag. " * (READ_CHARACTERS // 25)
    english = "This is a lovely day, is it not? " * 100_000
    assert languages.classify(german + english, ())[0].label == "de"


WELL_FORMED = {
    "1 Cor 13:4-7": "1 Corinthians 13:4-7",
    "Ps 23": "Psalm 23",
    "Gen 1:1; 2:4": "Genesis 1:1; 2:4",
    "Gen 1:1, 2:4": "Genesis 1:1; 2:4",
    "John 3:16, 18, 20-21": "John 3:16,18,20-21",
    "Ex 20:1-17; Deut 5:6-21": "Exodus 20:1-17; Deuteronomy 5:6-21",
    "Mt 5:3-12; 6:9-13; Lk 6:20": "Matthew 5:3-12; 6:9-13; Luke 6:20",
    "Gen 1:1-2:3": "Genesis 1:1-2:3",
    "Gen 1-2:3": "Genesis 1:1-2:3",
    "Gen 1:30-2:3,5": "Genesis 1:30-2:3,5",
    "Gen 1:1-1:3": "Genesis 1:1-3",
    "Isa 40-42": "Isaiah 40-42",
    "Ps 23, 24": "Psalm 23,24",
    "Ps. 23:1; 5": "Psalm 23:1; 5",
    "Rom 8:28a": "Romans 8:28a",
    "Rom 8:28ff": "Romans 8:28ff",
    "Gen 1.1": "Genesis 1:1",
    " i  cor.  13 ": "1 Corinthians 13",
    "1Cor13:4": "1 Corinthians 13:4",
    "II KINGS 2:11": "2 Kings 2:11",
    "First John 4:8": "1 John 4:8",
    "3rd John 4": "3 John 1:4",
    "Is 7:14": "Isaiah 7:14",
    "Song of Solomon 8:6\u20137": "Song of Songs 8:6-7",
    "Acts of the Apostles 2:1": "Acts 2:1",
    "Jude 3": "Jude 1:3",
    "Jude 1": "Jude 1",
    "Obad 1-4": "Obadiah 1:1-4",
    "Ps 119:176": "Psalm 119:176",
    "Rev 22:21": "Revelation 22:21",
    "\uff11 Cor 13:4": "1 Corinthians 13:4",
}
MALFORMED = [
    "", " ", "John", "3:16", "John 3:16 and more", "call me at 5:30", "Genesis one", "Genesis 1 1",
    "Hezekiah 3:2", "4 John 1", "2 Romans 1", "Ps 151", "Ps 119:177", "Gen 51", "Gen 1:32",
    "Gen 0", "Gen 1:0", "Jude 26", "John 3:17-16", "Gen 2:3-1:1", "Gen 1:1-1", "John 3:16ff-18",
    "Gen 1:1;", ";Gen 1:1", "Gen 1:1;;2:4", "Gen 1:1-", "Gen 1:30-32", "John 3:16d", "Mark 4:5 6",
    "Jean 3 16", "John ٣:١٦", "Gen 1:1; " * 40,
]  # fmt: skip


@pytest.mark.parametrize(("text", "canonical"), WELL_FORMED.items())
def test_well_formed_reference_is_normalised(text: str, canonical: str) -> None:
    assert normalised(text) == canonical
    assert normalised(canonical) == canonical


@pytest.mark.parametrize("text", MALFORMED)
def test_malformed_reference_is_none(text: str) -> None:
    assert normalised(text) is None


def test_book_names_are_unique() -> None:
    rows = json.loads(
        (ROOT / "inference" / "classifiers" / "canon.json").read_text(encoding="utf-8")
    )
    assert len(rows) == 66
    names = Counter(
        re.sub(r"[ .]", "", f"{row['name'][0] if row['name'][0].isdigit() else ''}{name}".lower())
        for row in rows
        for name in row["also"]
    )
    names.update(re.sub(r" ", "", row["name"].lower()) for row in rows)
    assert [name for name, count in names.items() if count > 1] == []
    assert len(names) == len(books())


def test_canon_is_the_king_james_version() -> None:
    assert sum(sum(book.verses) for book in set(books().values())) == 31_102
    # The references of all sample verses are well formed.
    for line in (ROOT / "samples" / "verses.txt").read_text(encoding="utf-8").splitlines():
        reference = line.split(" ")[0]
        assert normalised(reference) is not None, reference


def test_long_text_is_no_reference() -> None:
    assert normalised("Ps 23" + " " * MAX_CHARACTERS) is None


def test_catalogue_lists_all_builtin_classifiers() -> None:
    backend = builtin.connect(BackendConfig("builtin", "local"))
    served = [model for model in load().models if model.backend == "builtin"]
    assert backend.probe().models == {model.served_name for model in served}
    for model in served:
        backend.load(model).warm_up()
    backend.close()


def test_unknown_classifier_is_missing() -> None:
    backend = builtin.connect(BackendConfig("builtin", "local"))
    with pytest.raises(ModelMissing):
        backend.load(ModelEntry(name="none", backend="builtin", kinds=("classification",)))


def test_reference_classifier_scores_valid_and_invalid() -> None:
    classifier = builtin.ReferenceClassifier()
    assert [(s.label, s.score) for s in classifier.classify("Ps 23", ())] == [
        ("valid", 1.0), ("invalid", 0.0)
    ]  # fmt: skip
    assert classifier.classify("Ps 151", ["valid", "invalid"])[0].label == "invalid"
    assert classifier.classify("Ps 151", ["valid"])[0].score == 0
    with pytest.raises(BadRequest, match="label 0"):
        classifier.classify("Ps 23", ["good", "bad"])
