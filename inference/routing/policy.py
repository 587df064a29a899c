"""RoutingPolicy: which models may serve a request, best first. Pure: no I/O, no clock, no state.

The table is the catalogue's `policy`; health and budget are arguments. The dispatcher asks it for the
pool of a job, a worker's Router for what to call, so that both come to the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from inference.catalogue.schema import BackendEntry, Catalogue, Locality, ModelEntry
from vestry.lanes import Kind, Pool, Privacy

OVER_BUDGET: Final = "over_budget"


@dataclass(frozen=True, slots=True)
class RoutingRequest:
    """What a job asks for, as far as routing looks at it.

    Attributes:
        model: this one and no other.
        passed: models that this attempt tried in another pool, each with why it did not serve.
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
    """What clouds may cost in US dollars a day, and what they did cost. No limit: None."""

    limit: Decimal | None = None
    spent: Decimal = Decimal(0)

    @property
    def used_up(self) -> bool:
        """Whether nothing more may be spent today."""
        return self.limit is not None and self.spent >= self.limit


Health = Mapping[str, str]
"""Backend name to the reason it cannot be called just now, such as `rate_limited`. Well: absent."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model that may serve a request, and where it would."""

    model: ModelEntry
    backend: BackendEntry
    pool: Pool

    @property
    def locality(self) -> Locality:
        """Where its content would go."""
        return self.backend.locality


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the policy says of one request.

    Attributes:
        intended: what serves it when everything is well; None where nothing ever could.
        open: what may be called now, best first.
        away: why the others may not be called now, by model name.
    """

    intended: Candidate | None
    open: tuple[Candidate, ...] = ()
    away: Mapping[str, str] = field(default_factory=dict)

    @property
    def first(self) -> Candidate | None:
        """What to call now; None: wait, if there is something intended."""
        return self.open[0] if self.open else None

    def why_not_intended(self, served: Candidate) -> str | None:
        """Why something else than the intended serves it; None where that one does."""
        if self.intended is None or served.model.name == self.intended.model.name:
            return None
        return self.away.get(self.intended.model.name, "intended_model_failed")


@dataclass(frozen=True, slots=True)
class RoutingPolicy:
    """The table, bound to the backends that are in use.

    Args:
        catalogue: restricted to the enabled backends.
    """

    catalogue: Catalogue

    @property
    def version(self) -> str:
        """For receipts: changes with anything that decides a route."""
        return self.catalogue.version

    def candidates(self, wish: RoutingRequest, health: Health, budget: Budget) -> Candidates:
        """Models adequate for a request, in the order in which they are to be tried.

        Args:
            wish: kind, task, privacy, latency, tier, quality, and a model where it names one.
            health: backends that cannot be called now.
            budget: what clouds may still cost.
        """
        ordered = self._ordered(wish)
        if not ordered:
            return Candidates(None)
        away = {
            candidate.model.name: reason
            for candidate in ordered
            if (reason := _reason(candidate, health, budget)) is not None
        }
        callable_now = tuple(c for c in ordered if c.model.name not in away)
        return Candidates(ordered[0], callable_now, away)

    def pools(self, wish: RoutingRequest) -> frozenset[Pool]:
        """The pools in which a request might ever be served."""
        return frozenset(candidate.pool for candidate in self._ordered(wish))

    def _ordered(self, wish: RoutingRequest) -> Sequence[Candidate]:
        prefer = self._preference(wish)
        found: list[tuple[int, bool, Candidate]] = []
        for model in self.catalogue.models:
            backend = self.catalogue.backend(model.backend)
            # The wall in this room: what the table says does not count for private work.
            if wish.privacy != Privacy.SHAREABLE and backend.locality != "local":
                continue
            if wish.kind not in model.kinds or backend.locality not in prefer:
                continue
            if wish.model is not None and wish.model != model.name:
                continue
            if not self.catalogue.adequate(model, wish.task):
                continue
            named = isinstance(model.tasks, tuple)
            candidate = Candidate(model, backend, pool_of(wish.kind, backend))
            found.append((prefer.index(backend.locality), not named, candidate))
        found.sort(key=lambda one: one[:2])  # stable: the catalogue's order decides the rest
        return [candidate for _, _, candidate in found]

    def _preference(self, wish: RoutingRequest) -> tuple[Locality, ...]:
        asked = {
            "kind": wish.kind,
            "task": wish.task,
            "privacy": wish.privacy,
            "latency": wish.latency,
            "tier": wish.tier,
            "quality": wish.quality,
        }
        return next(rule.prefer for rule in self.catalogue.policy if rule.when.matches(**asked))


def pool_of(kind: str, backend: BackendEntry) -> Pool:
    """The pool whose workers call a backend for a kind."""
    if backend.locality == "cloud":
        return Pool.CLOUD
    return Pool.CPU if kind == "ocr" else Pool.GPU


def _reason(candidate: Candidate, health: Health, budget: Budget) -> str | None:
    if candidate.backend.name in health:
        return health[candidate.backend.name]
    if candidate.model.price is not None and candidate.locality == "cloud" and budget.used_up:
        return OVER_BUDGET
    return None
