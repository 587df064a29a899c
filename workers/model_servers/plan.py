"""Plan of a stack's model servers: the llama.cpp servers it runs, and the backends each worker may use.

Local backends are configured for the workers of both privacy classes, clouds only for the
cloud worker.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inference.catalogue.schema import BackendEntry
from inference.remote.local_network import is_own, networks
from vestry.lanes import LANES, Pool, Privacy
from workers.enabled_backends import check_names, load_catalogue
from workers.home import Home
from workers.llama_server import PACKAGED_ALIAS, NoModelError, model_file
from workers.setting_names import format_pairs, parse_pairs

LLAMA: Final = "llama"
OLLAMA: Final = "ollama"
SETTINGS: Final = (
    "VESTRY_BACKENDS",
    "VESTRY_BACKEND_KEYS",
    "VESTRY_LOCAL_NETWORKS",
    "VESTRY_OLLAMA",
    "VESTRY_LLAMA",
    "VESTRY_LLAMA_MODEL",
    "VESTRY_LLAMA_ALIAS",
    "VESTRY_LLAMA_CONTEXT",
    "VESTRY_LLAMA_SLOTS",
)
"""Settings of `vestry up` for model servers; no process gets them unchanged."""
DEFAULT_OLLAMA_URL: Final = "http://127.0.0.1:11434"
DISCOVERY_TIMEOUT_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """One llama.cpp server of the stack. The workers of `lanes` call it."""

    name: str
    port: int
    lanes: frozenset[str]

    @property
    def address(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"


class ModelServers:
    """The stack's llama.cpp servers, and the environment of each process that uses model servers.

    Args:
        home: for ports and the key.
        settings: of the stack, including those of SETTINGS.
        workers: worker name to its lanes.
        wanted: whether the process of a name is to run.

    Attributes:
        llama: the llama.cpp servers to run.
        notes: a line for the operator on each server that is used or not started.

    Raises:
        ValueError: a setting cannot be used; the message names it.
    """

    def __init__(
        self,
        home: Home,
        settings: Mapping[str, str],
        workers: Mapping[str, Sequence[str]],
        wanted: Callable[[str], bool],
    ) -> None:
        self.llama: tuple[LlamaServer, ...] = ()
        self.notes: list[str] = []
        self._discovered: list[str] = []
        self._home = home
        self._settings = settings
        self._workers = workers
        self._wanted = wanted
        file = settings.get("VESTRY_CATALOGUE")
        self._catalogue = load_catalogue(Path(file) if file else None)
        self._local_networks = networks(settings.get("VESTRY_LOCAL_NETWORKS", ""))
        self._urls = parse_pairs(settings.get("VESTRY_BACKENDS", ""))
        self._keys = parse_pairs(settings.get("VESTRY_BACKEND_KEYS", ""))
        check_names(self._catalogue, self._urls, self._keys)
        if any(map(wanted, workers)):
            self._discover_ollama()
            self._plan_llama()

    @property
    def clouds(self) -> tuple[str, ...]:
        """The configured cloud backends."""
        return tuple(name for name in self._urls if self._entry(name).locality == "cloud")

    def overview(self) -> dict[str, str]:
        """Environment of a process that routes but calls no backend: every backend, no key."""
        backends = format_pairs(dict(self._urls) | self._first_llama())
        return {"VESTRY_BACKENDS": backends} if backends else {}

    def environment(self, lanes: Sequence[str]) -> dict[str, str]:
        """Environment of a worker.

        Args:
            lanes: the worker's.
        """
        lane = LANES[lanes[0]]
        if lane.pool is Pool.CPU:
            return {}
        # All processes get the same names, so that they route alike; URLs and keys go only to those
        # that call the backend.
        is_cloud = lane.pool is Pool.CLOUD
        backends = {
            name: url if (name in self.clouds) == is_cloud else ""
            for name, url in self._urls.items()
            if self._allowed(name, lane.privacy)
        }
        keys = {
            name: self._keys[name]
            for name in backends
            if name in self._keys and (name in self.clouds) == is_cloud
        }
        if is_cloud and self.llama:
            backends[LLAMA] = ""
        server = next((s for s in self.llama if set(lanes) & s.lanes), None)
        if server is not None:
            backends[LLAMA] = f"{server.address}/v1"
            keys[LLAMA] = str(self.key_file)
        environment = {
            "VESTRY_BACKENDS": format_pairs(backends),
            "VESTRY_BACKEND_KEYS": format_pairs(keys),
            "VESTRY_LOCAL_NETWORKS": self._settings.get("VESTRY_LOCAL_NETWORKS", ""),
        }
        return {name: value for name, value in environment.items() if value}

    @property
    def key_file(self) -> Path:
        """The key of the llama.cpp servers."""
        return self._home.password_file(LLAMA)

    def llama_environment(self, server: LlamaServer) -> dict[str, str]:
        """Environment of a llama.cpp server; see `workers.llama_server.LlamaSettings`."""
        names = ("VESTRY_LLAMA_MODEL", "VESTRY_LLAMA_ALIAS", "VESTRY_LLAMA_SLOTS")
        context = (
            self._settings.get("VESTRY_LLAMA_CONTEXT") or self._catalogue.model(self._alias).context
        )
        return {
            **{name: self._settings[name] for name in names if name in self._settings},
            **({"VESTRY_LLAMA_CONTEXT": str(context)} if context else {}),
            "VESTRY_LLAMA_PORT": str(server.port),
            "VESTRY_LLAMA_KEY_FILE": str(self.key_file),
        }

    def document(self) -> dict[str, Any]:
        """For the client file: URL and key file of each backend, and which were discovered."""
        urls = {name: url or self._entry(name).url for name, url in self._urls.items()}
        keys = {LLAMA: str(self.key_file)} if self.llama else {}
        return {
            "backends": urls | self._first_llama(),
            "keys": self._keys | keys,
            "found": self._discovered,
        }

    def _first_llama(self) -> dict[str, str]:
        """The URL of the interactive lanes' server, if there is one."""
        return {LLAMA: f"{self.llama[0].address}/v1"} if self.llama else {}

    @property
    def _alias(self) -> str:
        return self._settings.get("VESTRY_LLAMA_ALIAS", PACKAGED_ALIAS)

    def _entry(self, name: str) -> BackendEntry:
        return self._catalogue.backend(name)

    def _allowed(self, name: str, privacy: Privacy) -> bool:
        """Whether workers of a privacy class may use a backend; private ones use only local ones."""
        if privacy is not Privacy.PRIVATE or name in self.clouds:
            return privacy is not Privacy.PRIVATE
        url = self._urls[name] or self._entry(name).url
        return url is None or is_own(url, self._local_networks)

    def _discover_ollama(self) -> None:
        setting = self._settings.get("VESTRY_OLLAMA") or "auto"
        if setting == "off" or OLLAMA in self._urls:
            return
        url = DEFAULT_OLLAMA_URL if setting == "auto" else setting
        if "://" not in url:
            raise ValueError("VESTRY_OLLAMA must be auto, off or a URL")
        version = ollama_version(url)
        if version is None and setting == "auto":
            return
        if setting == "auto":
            self._discovered.append(OLLAMA)
        # A server that was named may start later: the workers use it in any case.
        self._urls[OLLAMA] = url
        state = "does not answer yet" if version is None else f"{version} answers"
        self.notes.append(f"Ollama {state} at {url}; its models are preferred for generation")
        if not self._allowed(OLLAMA, Privacy.PRIVATE):
            self.notes.append(
                f"private workers do not use {url}: it is neither loopback nor in a network of "
                "VESTRY_LOCAL_NETWORKS"
            )

    def _plan_llama(self) -> None:
        setting = self._settings.get("VESTRY_LLAMA") or "auto"
        if setting not in {"auto", "off"}:
            raise ValueError("VESTRY_LLAMA must be auto or off")
        if setting == "off" or LLAMA in self._urls:
            return
        if self._alias not in {m.name for m in self._catalogue.models if m.backend == LLAMA}:
            raise ValueError(
                f"VESTRY_LLAMA_ALIAS must name a model of the backend {LLAMA} in the catalogue"
            )
        model = self._settings.get("VESTRY_LLAMA_MODEL")
        try:
            file = model_file(Path(model) if model else None)
        except NoModelError as error:
            self.notes.append(f"llama.cpp's server is not started: {error}")
            return
        self.llama = tuple(s for s in self._llama_servers() if self._wanted(s.name))
        if self.llama:
            self.notes.append(f"llama.cpp serves {self._alias} ({file.name})")

    def _llama_servers(self) -> list[LlamaServer]:
        """One server for each set of latencies that one worker serves.

        On a CPU, a single server would have interactive and bulk requests compete for its slots at the
        same priority.
        """
        servers: dict[str, set[str]] = {}
        for lanes in self._workers.values():
            if LANES[lanes[0]].pool is Pool.GPU:
                latencies = {LANES[lane].latency for lane in lanes}
                name = LLAMA if len(latencies) > 1 else f"{LLAMA}-{min(latencies)}"
                servers.setdefault(name, set()).update(lanes)
        return [
            LlamaServer(name, self._home.settle_port(name), frozenset(lanes))
            for name, lanes in servers.items()
        ]


def ollama_version(url: str, timeout_s: float = DISCOVERY_TIMEOUT_S) -> str | None:
    """Version of the Ollama server at a URL; None if none answers.

    Args:
        url: its base URL.
        timeout_s: for its answer.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{url.rstrip('/')}/api/version", timeout=timeout_s) as response:
            version = json.loads(response.read(4096))["version"]
    except (OSError, ValueError, LookupError, TypeError):  # urllib's errors are among these
        return None
    return str(version)
