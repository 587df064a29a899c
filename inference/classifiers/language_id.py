"""Language identification by py3langid: a small model inside its package, no network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from inference.errors import BadRequest, ModelMissing
from vestry.jobs.classification import LabelScore

READ_CHARACTERS: Final = 10_000
"""Characters of a text that are read: a hundred are as accurate, at about 4 µs each."""

_NAMES: Final = Path(__file__).with_name("languages.json")
_NO_EVIDENCE: Final = 2.5
"""A best score below this multiple of an even share means that nothing in the text was recognised:
without evidence the model gives each of its classes the same score, and two classes share a label."""


class LanguageClassifier:
    """See `inference.protocol.BuiltinClassifier`. Labels are ISO 639 codes, of two letters if possible.

    Scores are py3langid's own probabilities, which depend on the length of the text: for one to three
    words they are lower than the accuracy (measured in `docs/classification.md`), and from ten words on
    they are near 1.
    """

    def __init__(self) -> None:
        """Import the package; the model is read at first use.

        Raises:
            ModelMissing: py3langid is not installed.
        """
        try:
            from py3langid import langid  # noqa: PLC0415 - optional package
        except ImportError:
            raise ModelMissing(
                "the language classifier requires a package: pip install py3langid"
            ) from None
        self._langid = langid

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Codes of all its languages."""
        return tuple(sorted(self._identifier.labels))

    def classify(self, text: str, labels: Sequence[str]) -> Sequence[LabelScore]:
        """A score for each label; empty if the text has no evidence for a language.

        Args:
            text: any; ten words are enough.
            labels: codes, or English names of languages; empty for all codes. The text is assumed to be
                in one of them.

        Raises:
            BadRequest: a label is not one of its languages.
        """
        codes = self._codes(labels)
        ranked = dict(self._identifier.rank(text[:READ_CHARACTERS]))
        if max(ranked.values()) < _NO_EVIDENCE / len(ranked):
            return ()
        if not codes:
            return [LabelScore(code, score) for code, score in ranked.items()]
        total = sum(ranked[code] for code in codes.values())
        if not total:
            return ()
        scores = [LabelScore(label, ranked[code] / total) for label, code in codes.items()]
        return sorted(scores, key=lambda one: one.score, reverse=True)

    def normalised(self, text: str) -> str | None:
        """None: languages define no canonical form."""
        del text
        return None

    def warm_up(self) -> None:
        """Read the model."""
        self.classify("in the beginning", ())

    @cached_property
    def _identifier(self) -> Any:
        model = self._langid.MODEL_FILE
        return self._langid.LanguageIdentifier.from_model_file(model, norm_probs=True)

    def _codes(self, labels: Sequence[str]) -> dict[str, str]:
        """Each label's code, in order."""
        codes: dict[str, str] = {}
        for index, label in enumerate(labels):
            code = label.strip().lower()
            code = code if code in self.labels else self._by_name.get(code, "")
            if not code:
                raise BadRequest(
                    f"label {index} is not a language of this classifier: give an ISO 639 code such as "
                    "'de', or its English name"
                )
            codes[label] = code
        return codes

    @cached_property
    def _by_name(self) -> dict[str, str]:
        """Codes by English name in lower case."""
        names = json.loads(_NAMES.read_text(encoding="utf-8"))
        return {name.lower(): code for code, name in names.items() if code in self.labels}
