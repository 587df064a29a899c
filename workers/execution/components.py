"""Components of a worker: its handlers and models, built from its settings."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg_pool import ConnectionPool

from inference.catalogue.default_embedding import default_embedding
from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry
from inference.errors import InferenceError
from inference.protocol import SpaceSpec
from inference.routing.backend_guard import BackendGuard
from inference.routing.model_registry import ModelRegistry, configuration
from inference.routing.policy import RoutingPolicy, pool_of
from inference.routing.router import Router
from tasks.protocol import Handler, PassageSearch
from tasks.registry import handlers
from vestry.crypto.owner_keys import OwnerKeys
from vestry.lanes import LANES, Pool, Privacy
from workers.db import session
from workers.enabled_backends import RERANKER, breaker_settings, enabled_catalogue
from workers.execution.egress_log import recorder
from workers.execution.passage_search import DatabasePassageSearch
from workers.settings import Settings

Connection = psycopg.Connection[Any]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerComponents:
    """Handlers by kind, and the search for passages, of one process."""

    handlers: Mapping[str, Handler]
    passage_search: PassageSearch
    close: Callable[[], None] = lambda: None
    """Closes connections to model servers and ends helper processes."""


def build_components(
    settings: Settings,
    pool: ConnectionPool[Connection],
    keys: OwnerKeys,
    temp_dir: Path | None = None,
) -> WorkerComponents:
    """Build the components of a process, and load and warm up its resident models.

    Args:
        settings: of the process: backends, models and lanes.
        pool: connections, for embedding spaces and the shared state of the backends.
        keys: open the private passages that answers are grounded in.
        temp_dir: the process's private temporary directory.

    Raises:
        SystemExit: a model cannot be loaded; the message says what to do.
    """
    catalogue = enabled_catalogue(settings)
    pools = {LANES[lane].pool for lane in settings.lanes}
    guard = BackendGuard(
        partial(session, pool, settings.lease_s),
        catalogue,
        breaker_settings(settings),
        settings.cloud_budget_usd,
    )
    registry = ModelRegistry(
        catalogue,
        configuration(
            _keys(settings, catalogue, pools),
            _options(settings),
            guard.acquire_permit,
            threads=settings.threads,
            device=settings.device if Pool.CLOUD not in pools else "cpu",
            nice=settings.nice,
            temp_dir=temp_dir,
            local_networks=settings.local_networks
            if settings.privacy == Privacy.PRIVATE.value
            else None,
            egress=recorder(pool) if Pool.CLOUD in pools else None,
        ),
    )
    policy = RoutingPolicy(catalogue)
    embedding = default_embedding(catalogue)
    by_kind: dict[str, Handler] = {}
    for pool_name in pools:
        router = Router(policy, pool_name, registry, guard)
        pool_handlers = handlers(
            router,
            pool_name,
            lambda space: declare_space(pool, space),
            None if embedding is None else embedding.name,
        )
        by_kind.update({str(kind): handler for kind, handler in pool_handlers.items()})
    _warm_up(registry, catalogue, embedding, pools)
    if Pool.GPU in pools and embedding is not None:
        declare_space(pool, registry.model(embedding).space)
    return WorkerComponents(
        by_kind,
        DatabasePassageSearch(pool, registry, embedding, keys, settings.lease_s),
        registry.close,
    )


def _warm_up(
    registry: ModelRegistry, catalogue: Catalogue, embedding: ModelEntry | None, pools: set[Pool]
) -> None:
    """Load the resident models. A worker starts without any of them but the embedding model."""
    for entry in catalogue.models:
        backend = catalogue.backend(entry.backend)
        is_required = entry is embedding and Pool.GPU in pools
        if not is_required and not (
            entry.resident and {pool_of(k, backend) for k in entry.kinds} & pools
        ):
            continue
        try:
            registry.model(entry)
        except InferenceError as error:
            if is_required and backend.url is None:
                raise SystemExit(f"the embedding model cannot be used: {error}") from None
            log.warning("model %s not loaded (%s); its first job loads it", entry.name, error.code)


def _options(settings: Settings) -> dict[str, dict[str, Any]]:
    """Settings that concern one backend, by its name."""
    tesseract: dict[str, Any] = {"tessdata": settings.tessdata, "languages": settings.ocr_languages}
    return {
        "tesseract": {name: str(value) for name, value in tesseract.items() if value},
        RERANKER: {"path": settings.rerank_model} if settings.rerank_model else {},
    }


def _keys(settings: Settings, catalogue: Catalogue, pools: set[Pool]) -> dict[str, str]:
    """The API keys of the backends that the process calls.

    Raises:
        SystemExit: one is missing or cannot be read.
    """
    entries: list[BackendEntry] = [
        entry
        for entry in catalogue.backends
        if entry.key and (entry.locality == "cloud") == (Pool.CLOUD in pools)
    ]
    keys: dict[str, str] = {}
    for entry in entries:
        file = settings.backend_keys.get(entry.name)
        if file is None:
            raise SystemExit(f"backend {entry.name} needs VESTRY_BACKEND_KEYS={entry.name}=FILE")
        try:
            keys[entry.name] = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            kind = type(error).__name__
            raise SystemExit(f"the key of backend {entry.name} cannot be read ({kind})") from None
    return keys


def declare_space(pool: ConnectionPool[Connection], space: SpaceSpec) -> int:
    """Create an embedding space with its partition and index, unless it exists; returns its id.

    Args:
        pool: connections of a worker role.
        space: as the model declares it.

    Raises:
        SystemExit: a space of this name exists with another model, revision or dimension.
    """
    connection: AbstractContextManager[Connection] = pool.connection()
    with connection as conn:
        try:
            row = conn.execute(
                "SELECT vestry.ensure_space_v1(%s, %s, %s, %s, %s, %s, %s, %s, %s)",
                [
                    space.name,
                    space.model,
                    space.revision,
                    space.dimension,
                    space.query_prefix,
                    space.document_prefix,
                    space.normalised,
                    space.precision,
                    space.library,
                ],
            ).fetchone()
        except psycopg.errors.DatabaseError as error:
            if error.sqlstate != "VY003":
                raise
            raise SystemExit(
                f"the space {space.name} exists with another model, revision or dimension; "
                "name the model differently or remove the old space"
            ) from None
    assert row is not None  # noqa: S101 - a function call has one row
    return int(row[0])
