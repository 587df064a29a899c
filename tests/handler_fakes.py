"""Fakes for tests of handlers and the Router: models, guard, registry, cancelled jobs, passages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any
from uuid import UUID

from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry, Price, Rule, TaskEntry
from inference.errors import CallCancelled, InferenceError
from inference.protocol import (
    BackendConfig,
    Cancelled,
    Generated,
    GenerationRequest,
    InputType,
    not_cancelled,
)
from inference.routing.model_registry import ModelRegistry
from inference.routing.policy import Budget, Health, RoutingPolicy
from inference.routing.router import Router
from tasks.grounding import Passage
from tasks.protocol import Job
from tests.faulty_echo import FaultyEchoModel
from vestry.jobs.generation import Grounding
from vestry.lanes import Kind, Pool


class FakeGuard:
    """Admits every call and records it; a backend named in the constructor is unhealthy.

    Attributes:
        calls: name of the backend of each call.
        ended: backend and error of each finished call.
        refusals: raised by `before_call`, by backend.
        is_probe: returned by `before_call`.
    """

    def __init__(self, **unhealthy: str) -> None:
        self.unhealthy = unhealthy
        self.calls: list[str] = []
        self.ended: list[tuple[str, InferenceError | None]] = []
        self.refusals: dict[str, InferenceError] = {}
        self.is_probe = False

    @property
    def error_codes(self) -> list[str | None]:
        return [None if error is None else error.code for _, error in self.ended]

    def health(self) -> Health:
        return self.unhealthy

    def budget(self) -> Budget:
        return Budget()

    def before_call(self, backend: BackendEntry) -> bool:
        self.calls.append(backend.name)
        if backend.name in self.refusals:
            raise self.refusals[backend.name]
        return self.is_probe

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        self.ended.append((backend.name, error))

    def wait_s(self, backend: BackendEntry) -> float:
        del backend
        return 7.0


class FakeRegistry:
    """Returns a model's name as the model."""

    def model(self, entry: ModelEntry) -> Any:
        return entry.name


class RecordingModel(FaultyEchoModel):
    """The faulty echo model; records the texts, input type and urgency of each embedding call."""

    def __init__(self, model: str | None = None) -> None:
        super().__init__(model)
        self.calls: list[tuple[list[str], str, bool]] = []

    def embed(
        self,
        texts: Sequence[str],
        input: InputType = "document",  # noqa: A002 - the protocol's
        *,
        urgent: bool = False,
    ) -> Any:
        self.calls.append((list(texts), input, urgent))
        return super().embed(texts, input, urgent=urgent)

    @property
    def embedded(self) -> list[str]:
        return [text for texts, _, _ in self.calls for text in texts]


class ScriptedModel:
    """A language model with prepared answers, which records its requests.

    Like a server's model it has the methods of every kind; its catalogue entry declares its kinds.
    """

    def __init__(self, *answers: str | Generated | InferenceError) -> None:
        self.answers = list(answers)
        self.requests: list[GenerationRequest] = []

    def generate(
        self, request: GenerationRequest, cancelled: Cancelled = not_cancelled
    ) -> Generated:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, InferenceError):
            raise answer
        if cancelled():
            raise CallCancelled
        return answer if isinstance(answer, Generated) else Generated(answer, "stop", 10, 3)

    def embed(self, *_: Any, **__: Any) -> Any:
        raise AssertionError

    rerank = embed

    def warm_up(self) -> None:
        pass


class CancelledJobs:
    """A `CancellationSource` for which these jobs are lost."""

    def __init__(self, *jobs: UUID) -> None:
        self.jobs = set(jobs)

    def is_lost(self, job_id: UUID) -> bool:
        return job_id in self.jobs


class FakePassageSearch:
    """Returns these passages, and records the queries."""

    def __init__(self, *passages: Passage) -> None:
        self.results = passages
        self.queries: list[Grounding] = []

    def passages(self, job: Job, grounding: Grounding) -> Sequence[Passage]:
        del job
        self.queries.append(grounding)
        return self.results[: grounding.limit]

    def evict_expired(self) -> None:
        pass


class LoadedModels(ModelRegistry):
    """A registry of models that are already loaded, by name."""

    def __init__(self, catalogue: Catalogue, models: Mapping[str, Any]) -> None:
        super().__init__(catalogue, lambda entry: BackendConfig(entry.name, entry.locality))
        self._models.update(models)


def router(
    kind: Kind,
    models: Mapping[str, Any],
    *,
    guard: FakeGuard | None = None,
    cloud: tuple[str, ...] = (),
    entries: Mapping[str, Mapping[str, Any]] | None = None,
) -> Router:
    """A Router of the GPU pool.

    Args:
        kind: served by all models.
        models: loaded models by name, the best first; each has its own backend, of the same name.
            A model with a `space` also has the kind `embedding`, one with `generate` the kind
            `generation`.
        guard: records the calls.
        cloud: names of the models in a cloud.
        entries: further fields of models' catalogue entries, by name.
    """
    fields = entries or {}
    catalogue = Catalogue(
        backends=tuple(
            BackendEntry(name=name, runtime="none", locality="cloud" if name in cloud else "local")
            for name in models
        ),
        models=tuple(
            ModelEntry(
                **{
                    "name": name,
                    "backend": name,
                    "kinds": (kind, *_other_kinds(model)),
                    "price": Price(input=Decimal(1)) if name in cloud else None,
                    **fields.get(name, {}),
                }
            )
            for name, model in models.items()
        ),
        tasks=(
            TaskEntry(name="language", kinds=("classification",), demanding=True),
            TaskEntry(name="passage-reference", kinds=("classification",), demanding=True),
        ),
        policy=(Rule(prefer=("local", "cloud")),),
    )
    registry = LoadedModels(catalogue, models)
    return Router(RoutingPolicy(catalogue), Pool.GPU, registry, guard or FakeGuard())


def _other_kinds(model: Any) -> tuple[Kind, ...]:
    if hasattr(model, "space"):
        return ("embedding",)
    return ("generation",) if hasattr(model, "generate") else ()
