"""Inventory of the catalogue's models: which are reachable, present and small enough for this machine.

Used by `vestry models` and `vestry doctor`. The enabled backends are those of the environment and
those that a running stack has recorded.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil
from pydantic import ValidationError

from inference.catalogue.schema import BackendEntry, Catalogue, ModelEntry
from inference.errors import InferenceError
from inference.protocol import BackendProbe
from inference.remote.egress import probing
from inference.remote.local_network import is_own
from inference.routing.model_registry import ModelRegistry, configuration
from workers.enabled_backends import BackendSettingsError, enabled_backends, load_catalogue
from workers.home import read_json
from workers.settings import Settings, setting_faults

MAX_PARALLEL_PROBES: Final = 8
OVERHEAD: Final = 1.2
"""Memory of a loaded model per byte of its weights: buffers, and a context of some thousand tokens. A
long context takes more."""
_NVIDIA_SMI_TIMEOUT_S: Final = 5.0
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BackendState:
    """Current state of one backend.

    Attributes:
        entry: its catalogue entry, with the URL in use.
        enabled: workers here use it.
        configured: it was named in the settings, rather than enabled by the catalogue or discovered.
        probe: result of its probe; None for a backend that is not enabled.
    """

    entry: BackendEntry
    enabled: bool
    configured: bool
    probe: BackendProbe | None

    @property
    def reachable(self) -> bool:
        """Whether its probe was answered."""
        return self.probe is not None and self.probe.reachable


@dataclass(frozen=True, slots=True)
class ModelState:
    """Current state of one model. An attribute that cannot be determined is None.

    Attributes:
        present: its backend has it.
        needs: bytes of memory once loaded.
        fits: the memory of its device is at least that large.
    """

    entry: ModelEntry
    backend: BackendState
    present: bool | None
    needs: int | None
    fits: bool | None

    @property
    def ready(self) -> bool:
        """Whether it can serve jobs."""
        return self.backend.reachable and self.present is not False and self.fits is not False


@dataclass(frozen=True, slots=True)
class Memory:
    """Total and free bytes of memory; `of` names its device."""

    of: str
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class ModelInventory:
    """State of every backend and model of the catalogue."""

    backends: tuple[BackendState, ...]
    models: tuple[ModelState, ...]
    memory: Memory


class InventoryError(Exception):
    """Settings or catalogue cannot be used; the message says which."""


def load_settings() -> tuple[Settings, Catalogue]:
    """Load the settings of this process's environment, and the whole catalogue.

    Raises:
        InventoryError: they cannot be used.
    """
    try:
        settings = Settings()
        return settings, load_catalogue(settings.catalogue)
    except BackendSettingsError as error:
        raise InventoryError(str(error)) from None
    except ValidationError as error:
        raise InventoryError("; ".join(setting_faults(error))) from None


def running_stack(home: Path) -> Mapping[str, Any]:
    """`models` of the client file of the stack that runs in a home; empty where none runs."""
    recorded = read_json(home / "client.json").get("models")
    return recorded if isinstance(recorded, Mapping) else {}


def probe_all(settings: Settings, declared: Catalogue, stack: Mapping[str, Any]) -> ModelInventory:
    """Probe every enabled backend, all in parallel.

    Args:
        settings: of this process.
        declared: the whole catalogue.
        stack: result of `running_stack`.

    Raises:
        InventoryError: the settings name an unknown backend.
    """
    names = {entry.name for entry in declared.backends}
    running = {n: url for n, url in stack.get("backends", {}).items() if n in names}
    try:
        enabled = enabled_backends(
            declared,
            {**running, **settings.backends},
            settings.backend_keys,
            settings.rerank_model,
        )
    except BackendSettingsError as error:
        raise InventoryError(str(error)) from None
    configured = (running.keys() - set(stack.get("found", ()))) | settings.backends.keys()
    catalogue = declared.only(enabled)
    probes = _probes(catalogue, {**stack.get("keys", {}), **settings.backend_keys})
    states = {
        entry.name: BackendState(
            catalogue.backend(entry.name) if entry.name in enabled else entry,
            enabled=entry.name in enabled,
            configured=entry.name in configured,
            probe=probes.get(entry.name),
        )
        for entry in declared.backends
    }
    memory = model_memory(settings.device)
    models = tuple(_model(entry, states[entry.backend], memory) for entry in declared.models)
    return ModelInventory(tuple(states.values()), models, memory)


def model_memory(device: str, cards: Callable[[], str | None] | None = None) -> Memory:
    """Memory of the device that models compute on: the graphics card, else the machine.

    Args:
        device: VESTRY_DEVICE.
        cards: output of `nvidia-smi`, a line per card; None where there is none.
    """
    listing = (cards or _nvidia_cards)() if device == "auto" or device.startswith("cuda") else None
    if listing:
        number = device.partition(":")[2]
        lines = listing.strip().splitlines()
        line = lines[int(number)] if number.isdecimal() and int(number) < len(lines) else lines[0]
        try:
            total, free = (int(part) * _MIB for part in line.split(","))
        except ValueError:
            pass
        else:
            return Memory("graphics card", total, free)
    system = psutil.virtual_memory()
    return Memory("machine", system.total, system.available)


def _nvidia_cards() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None


def _probes(catalogue: Catalogue, key_files: Mapping[str, str]) -> dict[str, BackendProbe]:
    keys: dict[str, str] = {}
    probes: dict[str, BackendProbe] = {}
    for entry in catalogue.backends:
        if not entry.key:
            continue
        try:
            keys[entry.name] = Path(key_files[entry.name]).read_text(encoding="utf-8").strip()
        except (KeyError, OSError, UnicodeDecodeError):
            detail = f"no key: VESTRY_BACKEND_KEYS={entry.name}=FILE names its file"
            probes[entry.name] = BackendProbe(reachable=False, models=None, detail=detail)
    registry = ModelRegistry(catalogue, configuration(keys, {}, local_networks=None))

    def probe(name: str) -> BackendProbe:
        try:
            with probing():
                return registry.backend(name).probe()
        except InferenceError as error:
            return BackendProbe(reachable=False, models=None, detail=str(error))

    names = [entry.name for entry in catalogue.backends if entry.name not in probes]
    try:
        with ThreadPoolExecutor(MAX_PARALLEL_PROBES) as threads:
            probes.update(zip(names, threads.map(probe, names), strict=True))
    finally:
        registry.close()
    return probes


def _model(entry: ModelEntry, backend: BackendState, memory: Memory) -> ModelState:
    probe = backend.probe
    present = None
    if probe is not None and probe.models is not None:
        # Tesseract's models are sets of languages; without one of its own, any language serves.
        languages = entry.options.get("languages", ()) if "ocr" in entry.kinds else None
        names = [entry.served_name] if languages is None else languages
        present = probe.models.issuperset(names)
    weights = entry.weight_bytes if backend.entry.locality == "local" else None
    needs = None if weights is None else int(weights * OVERHEAD)
    on_this_machine = backend.entry.url is None or is_own(backend.entry.url)
    fits = needs <= memory.total if needs is not None and on_this_machine else None
    return ModelState(entry, backend, present, needs, fits)
