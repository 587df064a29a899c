"""Resolution of the enabled backends: the catalogue with a process's settings applied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from inference.catalogue.default_embedding import choose
from inference.catalogue.loader import CatalogueError, load
from inference.catalogue.schema import Catalogue
from inference.errors import InferenceError
from inference.routing.backend_guard import BreakerSettings
from vestry.lanes import Privacy
from workers.settings import Settings

RERANKER = "cross-encoder"
"""The catalogue's backend that loads VESTRY_RERANK_MODEL."""


class BackendSettingsError(ValueError):
    """The catalogue cannot be used, or a setting names no backend of it; the message says which."""


def enabled_catalogue(settings: Settings) -> Catalogue:
    """The part of the catalogue that a process uses, the default embedding model first.

    Raises:
        SystemExit: the catalogue or the settings cannot be used; the message says where.
    """
    try:
        declared = load_catalogue(settings.catalogue)
        enabled = enabled_backends(
            declared, settings.backends, settings.backend_keys, settings.rerank_model
        )
    except BackendSettingsError as error:
        raise SystemExit(str(error)) from None
    if settings.privacy == Privacy.PRIVATE.value:
        clouds = [name for name in enabled if declared.backend(name).locality == "cloud"]
        if clouds:
            raise SystemExit(
                f"a private worker may not use a cloud: remove {clouds[0]} from VESTRY_BACKENDS"
            )
    try:
        chosen = choose(declared, settings.embedding_backend, settings.embedding_model)
    except InferenceError as error:
        raise SystemExit(f"the embedding model cannot be used: {error}") from None
    added = {entry.name for entry in chosen.backends} - {entry.name for entry in declared.backends}
    return chosen.only(enabled | dict.fromkeys(added))


def load_catalogue(file: Path | None) -> Catalogue:
    """Load the whole catalogue from a file; None for the shipped one.

    Raises:
        BackendSettingsError: it cannot be read.
    """
    try:
        return load(file)
    except CatalogueError as error:
        raise BackendSettingsError(str(error)) from None


def enabled_backends(
    declared: Catalogue,
    urls: Mapping[str, str | None],
    keys: Iterable[str] = (),
    rerank_model: str = "",
) -> dict[str, str | None]:
    """Name of each enabled backend, with the URL that replaces its own or None.

    Args:
        declared: the whole catalogue.
        urls: VESTRY_BACKENDS.
        keys: backends named in VESTRY_BACKEND_KEYS.
        rerank_model: VESTRY_RERANK_MODEL.

    Raises:
        BackendSettingsError: a name is not in the catalogue.
    """
    check_names(declared, urls, keys)
    enabled = {entry.name: None for entry in declared.backends if entry.enabled} | dict(urls)
    if rerank_model and any(entry.name == RERANKER for entry in declared.backends):
        enabled.setdefault(RERANKER, None)
    return enabled


def check_names(declared: Catalogue, urls: Iterable[str], keys: Iterable[str]) -> None:
    """Check the backends that VESTRY_BACKENDS and VESTRY_BACKEND_KEYS name.

    Raises:
        BackendSettingsError: one of them is not in the catalogue.
    """
    names = [entry.name for entry in declared.backends]
    for variable, used in (("VESTRY_BACKENDS", urls), ("VESTRY_BACKEND_KEYS", keys)):
        if unknown := sorted(set(used) - set(names)):
            raise BackendSettingsError(
                f"{variable}: there is no backend {unknown[0]}; there are: {', '.join(names)}"
            )


def breaker_settings(settings: Settings) -> BreakerSettings:
    """Circuit-breaker settings of a process."""
    return BreakerSettings(
        failures=settings.breaker_failures,
        cooldown_s=settings.breaker_cooldown_s,
        max_cooldown_s=settings.breaker_max_cooldown_s,
    )
