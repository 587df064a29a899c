"""Small classifiers in this process with a fixed set of labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Final

from inference.catalogue.schema import Locality, ModelEntry
from inference.classifiers.bible_references import books, normalised
from inference.classifiers.language_id import LanguageClassifier
from inference.errors import BadRequest, ModelMissing
from inference.protocol import BackendConfig, BackendProbe, BuiltinClassifier
from vestry.jobs.classification import LabelScore

VALID: Final = "valid"
INVALID: Final = "invalid"


class ReferenceClassifier:
    """Whether a passage reference is well formed; see `classifiers.bible_references`."""

    labels = (VALID, INVALID)

    def classify(self, text: str, labels: Sequence[str]) -> Sequence[LabelScore]:
        """Score 1 for the label that applies, 0 for the other.

        Raises:
            BadRequest: a label is neither `valid` nor `invalid`.
        """
        for index, label in enumerate(labels):
            if label not in self.labels:
                raise BadRequest(f"label {index} is neither '{VALID}' nor '{INVALID}'")
        label = INVALID if self.normalised(text) is None else VALID
        scores = [LabelScore(one, float(one == label)) for one in labels or self.labels]
        return sorted(scores, key=lambda one: one.score, reverse=True)

    def normalised(self, text: str) -> str | None:
        """The reference in canonical form; None if it is malformed."""
        return normalised(text)

    def warm_up(self) -> None:
        """Read the canon."""
        books()


_CLASSIFIERS: Final[Mapping[str, Callable[[], BuiltinClassifier]]] = {
    "py3langid": LanguageClassifier,
    "reference-format": ReferenceClassifier,
}


class BuiltinBackend:
    """See `inference.protocol.Backend`."""

    def __init__(self, config: BackendConfig) -> None:
        self.name = config.name
        self.locality: Locality = config.locality

    def load(self, model: ModelEntry) -> BuiltinClassifier:
        """A classifier by its served name.

        Raises:
            ModelMissing: there is none of that name, or its package is not installed.
        """
        factory = _CLASSIFIERS.get(model.served_name)
        if factory is None:
            raise ModelMissing(
                f"there is no built-in classifier {model.served_name!r}; choose one of: "
                f"{', '.join(sorted(_CLASSIFIERS))}"
            )
        return factory()

    def probe(self) -> BackendProbe:
        """The classifiers whose packages are installed."""
        installed = set(_CLASSIFIERS)
        if find_spec("py3langid") is None:
            installed.remove("py3langid")
        return BackendProbe(reachable=True, models=frozenset(installed), detail="in this process")

    def close(self) -> None:
        """There is nothing to close."""


def connect(config: BackendConfig) -> BuiltinBackend:
    """The backend of a configuration."""
    return BuiltinBackend(config)
