"""The models of one process, each loaded once: at the start if resident, else at first use."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry
from inference.errors import ModelMissing
from inference.protocol import Backend, BackendConfig, ServedModel

Configure = Callable[[BackendEntry], BackendConfig]
"""Makes the configuration of a backend in this process: URL, key, device."""


class ModelRegistry:
    """Backends and models by name. Threads share it.

    Args:
        catalogue: restricted to the enabled backends.
        configure: makes a backend's configuration.
    """

    def __init__(self, catalogue: Catalogue, configure: Configure) -> None:
        self._catalogue = catalogue
        self._configure = configure
        self._backends: dict[str, Backend] = {}
        self._models: dict[str, ServedModel] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def backend(self, name: str) -> Backend:
        """A backend; the first call constructs it.

        Raises:
            ModelMissing: the module of its runtime cannot be imported.
        """
        with self._lock:
            backend = self._backends.get(name)
            if backend is None:
                backend = self._backends[name] = self._connect(self._catalogue.backend(name))
            return backend

    def model(self, entry: ModelEntry) -> Any:
        """A model; the first call loads and warms it up, concurrent calls wait for that.

        Its type follows from the kinds of its entry: see `inference.protocol`.

        Raises:
            InferenceError: it cannot be loaded.
        """
        with self._lock:
            lock = self._locks.setdefault(entry.name, threading.Lock())
        with lock:
            model = self._models.get(entry.name)
            if model is None:
                model = self.backend(entry.backend).load(entry)
                model.warm_up()
                self._models[entry.name] = model
            return model

    def close(self) -> None:
        """Close every backend. Safe to repeat."""
        with self._lock:
            backends, self._backends = self._backends, {}
            self._models.clear()
        for backend in backends.values():
            backend.close()

    def _connect(self, entry: BackendEntry) -> Backend:
        name = entry.runtime if "." in entry.runtime else f"inference.backends.{entry.runtime}"
        try:
            module = import_module(name)
        except ImportError as error:
            raise ModelMissing(
                f"backend {entry.name}: its runtime {entry.runtime} cannot be imported "
                f"({error.name or type(error).__name__} is missing)"
            ) from None
        backend: Backend = module.connect(self._configure(entry))
        return backend


def configuration(
    keys: Mapping[str, str],
    options: Mapping[str, Mapping[str, Any]],
    acquire_permit: Callable[[BackendEntry], None] = lambda _: None,
    **common: Any,
) -> Configure:
    """Configure backends from a process's settings.

    Args:
        keys: API keys by backend.
        options: further options by backend, over those of the catalogue.
        acquire_permit: waits for a permit under a backend's rate limit.
        common: further fields of every `BackendConfig`: threads, device, nice, temp_dir,
            local_networks, egress.
    """

    def configure(entry: BackendEntry) -> BackendConfig:
        return BackendConfig(
            name=entry.name,
            locality=entry.locality,
            url=entry.url,
            key=keys.get(entry.name),
            timeout_s=entry.timeout_s,
            options={**entry.options, **options.get(entry.name, {})},
            acquire_permit=partial(acquire_permit, entry),
            **common,
        )

    return configure
