"""Classification by an embedding model: all texts of a batch and their labels in one embedding.

The prototypes of label sets are cached between batches, so that the next text of a set costs only its
own vector. The cache holds vectors under a digest: no name, no description, no example. A private
job's digest is keyed with its owner's key, so that an owner's labels can neither be found through
another owner's nor be guessed; and as vectors of private text can be inverted, a set that was unused
for ten minutes is dropped with the next batch.
"""

from __future__ import annotations

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import numpy as np

from inference.errors import InferenceError
from inference.protocol import EmbeddingModel
from tasks.classification_payload import LabelPlan, LabelSpec
from tasks.embedding_batch import (
    Chunkers,
    EmbeddingBatch,
    LongTextEmbedder,
    PendingVector,
    error_of,
    tokens_of,
    vector_of,
)
from tasks.label_scoring import (
    DESCRIPTION_WEIGHT,
    NAME_WEIGHT,
    LabelSet,
    label_texts,
)
from tasks.protocol import Context, Failed, cancelled_outcome, failure_of

LABEL_SET: Final = "label-set"
"""Digest purpose of a set of labels."""
MAX_PROTOTYPES: Final = 4_000
"""Most prototypes cached, over all label sets: about 12 MB at 384 dimensions."""
IDLE_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class Classified:
    """A job's result, and the tokens of its calls."""

    result: dict[str, Any] = field(repr=False)
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class _Label:
    """The pieces of a label's own texts and of its examples."""

    described: list[list[PendingVector]]
    weight: float
    examples: list[list[PendingVector]]

    def vectors(self, dimension: int) -> tuple[Any, Any] | None:
        """Vectors of its texts and its examples; None if all jobs that requested them are cancelled."""
        described = [vector_of(pieces) for pieces in self.described]
        examples = [vector_of(pieces) for pieces in self.examples]
        if any(vector is None for vector in (*described, *examples)):
            return None
        return np.array(described), np.array(examples).reshape(len(examples), dimension)


@dataclass(slots=True)
class _Request:
    """One job in a batch: its label set is cached, or its `labels` are embedded with its text."""

    plan: LabelPlan
    key: bytes
    pieces: list[PendingVector]
    cached: LabelSet | None
    labels: list[_Label] = field(default_factory=list)


class SimilarityClassifier:
    """Classifies by similarity; caches label sets between batches. Thread-safe."""

    def __init__(self) -> None:
        self._sets = LabelSetCache()
        self._chunkers = Chunkers()

    def classify(
        self,
        model: EmbeddingModel,
        options: Mapping[str, Any],
        plans: Sequence[LabelPlan],
        context: Context,
        *,
        urgent: bool,
    ) -> dict[UUID, Classified | Failed]:
        """Classify the texts of some jobs.

        Args:
            model: computes the vectors.
            options: options of the model's catalogue entry.
            plans: with at least one label each.
            context: the batch's services.
            urgent: as in `EmbeddingModel.embed`.

        Raises:
            InferenceError: the model cannot be called; no single text is at fault.
        """
        embeddings, texts = EmbeddingBatch(), LongTextEmbedder(self._chunkers.of(model))
        requests: list[_Request] = []
        outcomes: dict[UUID, Classified | Failed] = {}
        for plan in plans:
            if context.cancellation.is_lost(plan.job.id):
                outcomes[plan.job.id] = cancelled_outcome()
                continue
            try:
                requests.append(self._request(plan, model, embeddings, texts, context))
            except InferenceError as error:
                if not error.per_text:
                    raise
                outcomes[plan.job.id] = failure_of(error)
        embeddings.embed(model, context.cancellation.is_lost, urgent=urgent)
        if embeddings.backend_error is not None:
            raise embeddings.backend_error
        for request in requests:
            outcomes[request.plan.job.id] = self._outcome(request, model, options)
        return outcomes

    def _request(
        self,
        plan: LabelPlan,
        model: EmbeddingModel,
        embeddings: EmbeddingBatch,
        texts: LongTextEmbedder,
        context: Context,
    ) -> _Request:
        """Request the vectors of a job's text, and of its labels unless their set is cached."""
        digest = context.digest[plan.job.owner]
        key = digest(LABEL_SET, _canonical(plan.labels, model.space.name))
        job = plan.job.id
        request = _Request(
            plan, key, texts.request(embeddings, job, plan.text), self._sets.get(key)
        )
        if request.cached is None:
            request.labels = [
                _Label(
                    [
                        texts.request(embeddings, job, text)
                        for text in label_texts(label.name, label.description)
                    ],
                    NAME_WEIGHT if label.description is None else DESCRIPTION_WEIGHT,
                    [texts.request(embeddings, job, example) for example in label.examples],
                )
                for label in plan.labels
            ]
        return request

    def _outcome(
        self, request: _Request, model: EmbeddingModel, options: Mapping[str, Any]
    ) -> Classified | Failed:
        error = error_of(request.pieces)
        if error is not None:
            return failure_of(error, "text")
        labels = request.cached or self._label_set(request, model.space.dimension, options)
        if isinstance(labels, InferenceError):
            return failure_of(labels, "a label's text")
        vector = vector_of(request.pieces)
        if labels is None or vector is None:
            return cancelled_outcome()
        scores = labels.scores(request.plan.names, vector, multi=request.plan.multi)
        return Classified(request.plan.result(scores), tokens_of(request.pieces))

    def _label_set(
        self, request: _Request, dimension: int, options: Mapping[str, Any]
    ) -> LabelSet | InferenceError | None:
        """Make and cache the job's label set; None if the job was cancelled."""
        label_set = self._sets.get(request.key)  # of an earlier job of this batch
        if label_set is not None:
            return label_set
        vectors = []
        for label in request.labels:
            for pieces in (*label.described, *label.examples):
                error = error_of(pieces)
                if error is not None:
                    return error
            label_vectors = label.vectors(dimension)
            if label_vectors is None:
                return None
            vectors.append((label_vectors, label.weight))
        label_set = LabelSet.of(
            [(described, weight) for (described, _), weight in vectors],
            [examples for (_, examples), _ in vectors],
            options,
        )
        self._sets.put(request.key, label_set)
        return label_set


def _canonical(labels: Sequence[LabelSpec], space: str) -> bytes:
    """Canonical bytes of everything that the vectors of a label set depend on."""
    rows = [[label.name, label.description, label.examples] for label in labels]
    return json.dumps([space, rows], separators=(",", ":")).encode("ascii")


class LabelSetCache:
    """Bounded LRU cache of label sets. Threads share it.

    Args:
        most: largest number of prototypes over all sets.
        idle_s: seconds without use, after which a set is dropped.
        clock: returns a time in seconds.
    """

    def __init__(
        self,
        most: int = MAX_PROTOTYPES,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = most
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._sets: OrderedDict[bytes, tuple[LabelSet, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sets)

    def get(self, key: bytes) -> LabelSet | None:
        """A set by its key."""
        with self._lock:
            self._drop_idle()
            entry = self._sets.pop(key, None)
            if entry is None:
                return None
            self._sets[key] = (entry[0], self._clock())
            return entry[0]

    def put(self, key: bytes, label_set: LabelSet) -> None:
        """Add a set; the least recently used ones are dropped to make space."""
        with self._lock:
            self._drop_idle()
            self._sets.pop(key, None)
            self._sets[key] = (label_set, self._clock())
            while self._sets and self._size() > self._most:
                self._sets.popitem(last=False)

    def _size(self) -> int:
        return sum(len(label_set.prototypes) for label_set, _ in self._sets.values())

    def _drop_idle(self) -> None:
        oldest = self._clock() - self._idle_s
        while self._sets and next(iter(self._sets.values()))[1] < oldest:
            self._sets.popitem(last=False)
