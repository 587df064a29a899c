"""Routing policy: the models that may serve a request, best first. Pure: no I/O, no clock, no state.

The rules are the catalogue's `policy`; health and budget are arguments. The dispatcher derives the pool
of a job from it and a worker's Router the model to call, so that both reach the same decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from inference.catalogue.schema import BackendEntry, Catalogue, Locality, ModelEntry
from vestry.lanes import KINDS, Kind, Pool, Privacy

OVER_BUDGET: Final = "over_budget"


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """The fields of a job that routing depends on.

    Attributes:
        model: the only model that may serve it; None for any.
        tried_models: models that this attempt tried in another pool, each with why it did not serve.
    """

    kind: Kind
    task: str | None
    privacy: str
    latency: str
    tier: str | None = None
    quality: str = "adequate"
    model: str | None = None
    tried_models: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """Daily limit of spending on clouds and the amount spent, in US dollars; no limit: None."""

    limit: Decimal | None = None
    spent: Decimal = Decimal(0)

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be spent today."""
        return self.limit is not None and self.spent >= self.limit


Health = Mapping[str, str]
"""Unhealthy backends by name, with the reason, such as `rate_limited`; healthy ones are absent."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may serve a request, with its backend and pool."""

    model: ModelEntry
    backend: BackendEntry
    pool: Pool

    @property
    def locality(self) -> Locality:
        """Whether content stays on the operator's own machines."""
        return self.backend.locality


@dataclass(frozen=True, slots=True)
class Candidates:
    """The policy's decision on one request.

    Attributes:
        intended: serves it when every backend is healthy; None if no model ever can.
        available: may be called now, best first.
        unavailable: why the others may not be called now, by model name.
    """

    intended: Candidate | None
    available: tuple[Candidate, ...] = ()
    unavailable: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Candidate | None:
        """The model to call now; if None, the request waits for `intended`, if there is one."""
        return self.available[0] if self.available else None

    def why_not_intended(self, served: Candidate) -> str | None:
        """Why another model than the intended one serves; None if it is the intended one."""
        if self.intended is None or served.model.name == self.intended.model.name:
            return None
        return self.unavailable.get(self.intended.model.name, "intended_model_failed")


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """The rules, bound to the enabled backends.

    Args:
        catalogue: restricted to the enabled backends.
    """

    catalogue: Catalogue

    @property
    def version(self) -> str:
        """For receipts: changes with anything that affects a route."""
        return self.catalogue.version

    def candidates(self, request: RoutingRequest, health: Health, budget: Budget) -> Candidates:
        """The models that are adequate for a request, in the order in which to call them.

        Args:
            request: kind, task, privacy, latency, tier, quality, and possibly a model.
            health: backends that cannot be called now.
            budget: remaining budget for clouds.
        """
        ordered = self._ordered(request)
        if not ordered:
            return Candidates(None)
        unavailable = {
            candidate.model.name: reason
            for candidate in ordered
            if (reason := _reason(candidate, health, budget)) is not None
        }
        available = tuple(c for c in ordered if c.model.name not in unavailable)
        return Candidates(ordered[0], available, unavailable)

    def pools(self, request: RoutingRequest) -> frozenset[Pool]:
        """The pools in which a request may be served at any time."""
        return frozenset(candidate.pool for candidate in self._ordered(request))

    def _ordered(self, request: RoutingRequest) -> Sequence[Candidate]:
        prefer = self._preference(request)
        ranked: list[tuple[int, bool, Candidate]] = []
        for model in self.catalogue.models:
            backend = self.catalogue.backend(model.backend)
            # Privacy wall: private work never gets a cloud model, whatever the rules say.
            if request.privacy != Privacy.SHAREABLE and backend.locality != "local":
                continue
            if request.kind not in model.kinds or backend.locality not in prefer:
                continue
            if request.model is not None and request.model != model.name:
                continue
            if not self.catalogue.adequate(model, request.task):
                continue
            lists_tasks = isinstance(model.tasks, tuple)
            candidate = Candidate(model, backend, pool_of(request.kind, backend))
            ranked.append((prefer.index(backend.locality), not lists_tasks, candidate))
        ranked.sort(key=lambda one: one[:2])  # stable: then the catalogue's order decides
        return [candidate for _, _, candidate in ranked]

    def _preference(self, request: RoutingRequest) -> tuple[Locality, ...]:
        fields = {
            "kind": request.kind,
            "task": request.task,
            "privacy": request.privacy,
            "latency": request.latency,
            "tier": request.tier,
            "quality": request.quality,
        }
        return next(rule.prefer for rule in self.catalogue.policy if rule.when.matches(**fields))


def pool_of(kind: Kind, backend: BackendEntry) -> Pool:
    """The pool whose workers call a backend for a kind."""
    return Pool.CLOUD if backend.locality == "cloud" else KINDS[kind]


def _reason(candidate: Candidate, health: Health, budget: Budget) -> str | None:
    if candidate.backend.name in health:
        return health[candidate.backend.name]
    if candidate.model.price is not None and candidate.locality == "cloud" and budget.used_up:
        return OVER_BUDGET
    return None
