"""A Router over given models, and a gate that notes who passes: for tests of handlers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry, Price, Rule, TaskEntry
from inference.errors import InferenceError
from inference.protocol import BackendConfig
from inference.routing.model_registry import ModelRegistry
from inference.routing.policy import Budget, Health, RoutingPolicy
from inference.routing.router import Router
from vestry.lanes import Kind, Pool


@dataclass
class NotingGuard:
    """Lets everybody through; `passed` and `errors` tell of each call."""

    away: dict[str, str] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    errors: list[str | None] = field(default_factory=list)

    def health(self) -> Health:
        return self.away

    def budget(self) -> Budget:
        return Budget()

    def before_call(self, backend: BackendEntry) -> bool:
        self.passed.append(backend.name)
        return False

    def after_call(self, backend: BackendEntry, error: InferenceError | None) -> None:
        del backend
        self.errors.append(None if error is None else error.code)

    def wait_s(self, backend: BackendEntry) -> float:
        del backend
        return 7.0


def router(
    kind: Kind,
    models: Mapping[str, Any],
    *,
    gate: NotingGuard | None = None,
    cloud: tuple[str, ...] = (),
    entries: Mapping[str, Mapping[str, Any]] | None = None,
) -> Router:
    """A Router of the GPU pool.

    Args:
        kind: that all models are of.
        models: loaded models by name, the best first; each has a backend of its own, of that name.
            One with a `space` is declared to embed, one that generates to generate.
        gate: notes the calls.
        cloud: names of those that are in a cloud.
        entries: further fields of models' catalogue entries, by name.
    """
    given = entries or {}
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
                    "kinds": (kind, *_others(model)),
                    "price": Price(input=Decimal(1)) if name in cloud else None,
                    **given.get(name, {}),
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
    fleet = ModelRegistry(catalogue, lambda entry: BackendConfig(entry.name, entry.locality))
    for name, model in models.items():
        fleet.register(name, model)
    return Router(RoutingPolicy(catalogue), Pool.GPU, fleet, gate or NotingGuard())


def _others(model: Any) -> tuple[Kind, ...]:
    if hasattr(model, "space"):
        return ("embedding",)
    return ("generation",) if hasattr(model, "generate") else ()
