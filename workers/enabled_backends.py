"""What a process's settings enable of the catalogue."""

from __future__ import annotations

from inference.catalogue.default_embedding import choose
from inference.catalogue.loader import CatalogueError, load
from inference.catalogue.schema import Catalogue
from inference.errors import InferenceError
from inference.routing.backend_guard import BreakerSettings
from vestry.lanes import Privacy
from workers.settings import Settings

RERANKER = "cross-encoder"
"""The catalogue's backend that VESTRY_RERANK_MODEL is for."""


def enabled_catalogue(settings: Settings) -> Catalogue:
    """The catalogue's part that these settings enable, the default embedding model first.

    Raises:
        SystemExit: the catalogue or the settings cannot be used; the message says where.
    """
    try:
        declared = load(settings.catalogue)
    except CatalogueError as error:
        raise SystemExit(str(error)) from None
    known = {entry.name: entry for entry in declared.backends}
    for name in (*settings.backends, *settings.backend_keys):
        if name not in known:
            raise SystemExit(f"there is no backend {name}; there are: {', '.join(known)}")
    enabled: dict[str, str | None] = {
        entry.name: None for entry in declared.backends if entry.enabled
    }
    enabled |= settings.backends
    if settings.rerank_model and RERANKER in known:
        enabled.setdefault(RERANKER, None)
    if settings.privacy == Privacy.PRIVATE.value:
        clouds = [name for name in enabled if known[name].locality == "cloud"]
        if clouds:
            raise SystemExit(
                f"a private worker knows no cloud: take {clouds[0]} out of its settings"
            )
    try:
        chosen = choose(declared, settings.embedding_backend, settings.embedding_model)
    except InferenceError as error:
        raise SystemExit(f"the embedding model cannot be used: {error}") from None
    enabled |= {entry.name: None for entry in chosen.backends if entry.name not in known}
    return chosen.only(enabled)


def breaker_settings(settings: Settings) -> BreakerSettings:
    """When breakers open, and for how long."""
    return BreakerSettings(
        failures=settings.breaker_failures,
        cooldown_s=settings.breaker_cooldown_s,
        max_cooldown_s=settings.breaker_max_cooldown_s,
    )
