"""Rerank jobs: the order in which passages answer a query."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from vestry.errors import InvalidInput, PayloadTooLarge
from vestry.jobs.base import COST_BYTES, Digest, Prepared
from vestry.lanes import Kind
from vestry.validation import PAYLOAD_LIMIT, check_label, check_text, dump_json

PASSAGES_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Rerank:
    """Passages, to be ranked by how well they answer a query.

    Attributes:
        query: the question.
        passages: possible answers, up to 1000. A model reads each passage whole, together with the
            query: one that is too long for the model fails the job.
        limit: number of best passages in the result; all by default.
        model: a model's name in the catalogue; by default routing chooses.
        keep_text: False deletes query and passages once the job has succeeded.
    """

    query: str
    passages: Sequence[str]
    limit: int | None = None
    model: str | None = None
    keep_text: bool = True
    kind: ClassVar[Kind] = "rerank"

    def __post_init__(self) -> None:
        check_text("query", self.query)
        if isinstance(self.passages, (str, bytes)) or not isinstance(self.passages, Sequence):
            raise InvalidInput("passages", "must be a list")
        object.__setattr__(self, "passages", tuple(self.passages))
        if not 1 <= len(self.passages) <= PASSAGES_MAX:
            raise InvalidInput(
                "passages", f"has {len(self.passages)} passages; 1 to {PASSAGES_MAX} are allowed"
            )
        for index, passage in enumerate(self.passages):
            check_text(f"passages[{index}]", passage)
        if self.limit is not None and (
            isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1
        ):
            raise InvalidInput("limit", "must be a whole number of at least 1")
        if not isinstance(self.keep_text, bool):
            raise InvalidInput("keep_text", "must be True or False")
        if self.model is not None:
            check_label("model", self.model)

    def __repr__(self) -> str:
        return f"Rerank({len(self.passages)} passages)"

    def prepare(self, digest: Digest, payload_limit: int = PAYLOAD_LIMIT) -> Prepared:
        """Serialise: `{"query", "passages", "limit"}`.

        Raises:
            PayloadTooLarge: over `payload_limit` bytes.
        """
        del digest  # only documents are digested
        body = {"query": self.query, "passages": list(self.passages), "limit": self.limit}
        payload = dump_json("passages", body)
        if len(payload) > payload_limit:
            raise PayloadTooLarge("passages", len(payload), payload_limit)
        # A model reads the query again with each passage.
        read = sum(len(passage.encode()) for passage in self.passages)
        read += len(self.passages) * len(self.query.encode())
        return Prepared(
            kind=self.kind,
            pool=None,
            model=self.model,
            payload=payload,
            cost=1 + read // COST_BYTES,
            keep_payload=self.keep_text,
        )


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage, by its position in the job's list, from 0, and its score.

    Scores are comparable within one result; their scale depends on the model.
    """

    index: int
    score: float


@dataclass(frozen=True, slots=True)
class RerankResult:
    """The passages, best first; of equal scores the earlier first."""

    ranking: tuple[Ranked, ...]

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> RerankResult:
        """From the worker's `{"ranking": [{"index", "score"}]}`."""
        return cls(tuple(Ranked(int(r["index"]), float(r["score"])) for r in body["ranking"]))
