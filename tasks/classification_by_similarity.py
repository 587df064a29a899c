"""Classifies the texts of many jobs with an embedding model, all vectors of a batch in one go."""

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
from tasks.label_scoring import (
    DESCRIPTION_WEIGHT,
    NAME_WEIGHT,
    LabelSet,
    label_texts,
)
from tasks.outcomes import cancelled_outcome, failure_of
from tasks.protocol import Context, Failed
from tasks.vector_pool import (
    Chunkers,
    EmbeddingBatch,
    LongTextEmbedder,
    PendingVector,
    error_of,
    tokens_of,
    vector_of,
)

LABEL_SET: Final = "label-set"
"""Digest purpose of a set of labels."""


@dataclass(frozen=True, slots=True)
class Classified:
    """A job's result, and what it took."""

    result: dict[str, Any] = field(repr=False)
    input_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(slots=True)
class _Label:
    """The pieces of what a label is told by: its own texts, and its examples."""

    described: list[list[PendingVector]]
    weight: float
    examples: list[list[PendingVector]]

    def vectors(self, dimension: int) -> tuple[Any, Any] | None:
        """Of both; None where the jobs that wanted them were abandoned."""
        described = [vector_of(pieces) for pieces in self.described]
        examples = [vector_of(pieces) for pieces in self.examples]
        if any(vector is None for vector in (*described, *examples)):
            return None
        return np.array(described), np.array(examples).reshape(len(examples), dimension)


@dataclass(slots=True)
class _Asked:
    """One job on its way: exactly one of `known` and `labels` says what to compare with."""

    plan: LabelPlan
    key: bytes
    pieces: list[PendingVector]
    known: LabelSet | None
    labels: list[_Label] = field(default_factory=list)


class SimilarityClassifier:
    """Classifies by similarity; keeps label sets between batches. Thread-safe."""

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
        """What comes of each job.

        Args:
            model: makes the vectors.
            options: of its catalogue entry.
            plans: with at least one label each.
            context: the batch's.
            urgent: somebody waits.

        Raises:
            InferenceError: the model cannot be called; no single text is at fault.
        """
        pool, texts = EmbeddingBatch(), LongTextEmbedder(self._chunkers.of(model))
        asked: list[_Asked] = []
        outcomes: dict[UUID, Classified | Failed] = {}
        for plan in plans:
            if context.cancellation.is_lost(plan.job.id):
                outcomes[plan.job.id] = cancelled_outcome()
                continue
            try:
                asked.append(self._ask(plan, model, pool, texts, context))
            except InferenceError as error:
                if not error.per_text:
                    raise
                outcomes[plan.job.id] = failure_of(error)
        pool.embed(model, context.cancellation.is_lost, urgent=urgent)
        if pool.backend_error is not None:
            raise pool.backend_error
        for one in asked:
            outcomes[one.plan.job.id] = self._outcome(one, model, options)
        return outcomes

    def _ask(
        self,
        plan: LabelPlan,
        model: EmbeddingModel,
        pool: EmbeddingBatch,
        texts: LongTextEmbedder,
        context: Context,
    ) -> _Asked:
        digest = context.digest[plan.job.owner]
        key = digest(LABEL_SET, _canonical(plan.labels, model.space.name))
        job = plan.job.id
        asked = _Asked(plan, key, texts.request(pool, job, plan.text), self._sets.get(key))
        if asked.known is None:
            asked.labels = [
                _Label(
                    [
                        texts.request(pool, job, text)
                        for text in label_texts(label.name, label.description)
                    ],
                    NAME_WEIGHT if label.description is None else DESCRIPTION_WEIGHT,
                    [texts.request(pool, job, example) for example in label.examples],
                )
                for label in plan.labels
            ]
        return asked

    def _outcome(
        self, asked: _Asked, model: EmbeddingModel, options: Mapping[str, Any]
    ) -> Classified | Failed:
        error = error_of(asked.pieces)
        if error is not None:
            return failure_of(error, "text")
        labels = asked.known or self._made(asked, model.space.dimension, options)
        if isinstance(labels, InferenceError):
            return failure_of(labels, "a label's text")
        vector = vector_of(asked.pieces)
        if labels is None or vector is None:
            return cancelled_outcome()
        scores = labels.scores(asked.plan.names, vector, multi=asked.plan.multi)
        return Classified(asked.plan.result(scores), tokens_of(asked.pieces))

    def _made(
        self, asked: _Asked, dimension: int, options: Mapping[str, Any]
    ) -> LabelSet | InferenceError | None:
        """The job's set of labels, from now on known; None where it was abandoned."""
        made = self._sets.get(asked.key)  # by a job before it in the batch
        if made is not None:
            return made
        vectors = []
        for label in asked.labels:
            for pieces in (*label.described, *label.examples):
                error = error_of(pieces)
                if error is not None:
                    return error
            found = label.vectors(dimension)
            if found is None:
                return None
            vectors.append((found, label.weight))
        made = LabelSet.of(
            [(described, weight) for (described, _), weight in vectors],
            [examples for (_, examples), _ in vectors],
            options,
        )
        self._sets.put(asked.key, made)
        return made


def _canonical(labels: Sequence[LabelSpec], space: str) -> bytes:
    """Everything that decides a set of labels' vectors."""
    rows = [[label.name, label.description, label.examples] for label in labels]
    return json.dumps([space, rows], separators=(",", ":")).encode("ascii")


# Label sets kept between batches: the next text of the same set costs only its own vector.
#
# What is kept is prototypes, under a digest: no name, no description, no example. A private job's
# digest is keyed with its owner's key, so that one owner's labels can neither be found through
# another's nor be guessed; and as vectors of private text can be inverted, a set that was not used
# for ten minutes is dropped with the next batch.

PROTOTYPES_MOST: Final = 4_000
"""Over all sets: some 12 MB at 384 dimensions."""
IDLE_S: Final = 600.0


class LabelSetCache:
    """Bounded; the set that was not asked for longest goes first. Threads share it.

    Args:
        most: prototypes over all sets.
        idle_s: seconds without being asked for, after which a set is dropped.
        clock: of seconds.
    """

    def __init__(
        self,
        most: int = PROTOTYPES_MOST,
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
            found = self._sets.pop(key, None)
            if found is None:
                return None
            self._sets[key] = (found[0], self._clock())
            return found[0]

    def put(self, key: bytes, made: LabelSet) -> None:
        """Keep a set; others may have to go."""
        with self._lock:
            self._drop_idle()
            self._sets.pop(key, None)
            self._sets[key] = (made, self._clock())
            while self._sets and self._size() > self._most:
                self._sets.popitem(last=False)

    def _size(self) -> int:
        return sum(len(made.prototypes) for made, _ in self._sets.values())

    def _drop_idle(self) -> None:
        oldest = self._clock() - self._idle_s
        while self._sets and next(iter(self._sets.values()))[1] < oldest:
            self._sets.popitem(last=False)
