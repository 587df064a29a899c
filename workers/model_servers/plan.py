"""The model servers of a stack: llama.cpp's, which it runs, and those its workers are told of.

What is local is told to the workers of both classes, a cloud to the shareable ones for clouds alone.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from inference.catalogue.loader import CatalogueError, load
from inference.catalogue.schema import BackendEntry, Catalogue
from inference.remote.local_network import is_own, networks
from vestry.lanes import LANES, Pool, Privacy
from workers.environment import format_pairs, parse_pairs
from workers.home import Home
from workers.llama_server import PACKAGED_ALIAS, NoModelError, model_file

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
"""Settings of `vestry up` about them; no process is given them as they are."""


@dataclass(frozen=True, slots=True)
class LlamaServer:
    """One llama.cpp server of the stack. `lanes` are those whose workers call it."""

    name: str
    port: int
    lanes: frozenset[str]

    @property
    def address(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


class ModelServers:
    """Which there are, and what each worker is told.

    Args:
        home: for ports and the key.
        settings: of the stack, those of SETTINGS among them.
        workers: the lanes of each worker, by its name.
        wanted: whether a process of a name is to run.

    Attributes:
        llama: the llama.cpp servers to run.
        notes: what there is and what is left out, a line each, for a person.

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
        self._found: list[str] = []
        self._home = home
        self._settings = settings
        self._workers = workers
        self._wanted = wanted
        self._catalogue = _catalogue(settings)
        self._own = networks(settings.get("VESTRY_LOCAL_NETWORKS", ""))
        self._urls = parse_pairs(settings.get("VESTRY_BACKENDS", ""))
        self._keys = parse_pairs(settings.get("VESTRY_BACKEND_KEYS", ""))
        known = {entry.name for entry in self._catalogue.backends}
        if unknown := (self._urls.keys() | self._keys.keys()) - known:
            raise ValueError(
                f"VESTRY_BACKENDS: there is no backend {min(unknown)}; there are: "
                + ", ".join(sorted(known))
            )
        if any(map(wanted, workers)):
            self._find_ollama()
            self._plan_llama()

    @property
    def clouds(self) -> tuple[str, ...]:
        """The cloud backends that were asked for."""
        return tuple(name for name in self._urls if self._entry(name).locality == "cloud")

    def overview(self) -> dict[str, str]:
        """What a process is told that decides on routes and calls nobody: all of them, no keys."""
        told = format_pairs(dict(self._urls) | self._own_llama())
        return {"VESTRY_BACKENDS": told} if told else {}

    def environment(self, lanes: Sequence[str]) -> dict[str, str]:
        """What a worker is told of model servers.

        Args:
            lanes: that it serves.
        """
        one = LANES[lanes[0]]
        if one.pool is Pool.CPU:
            return {}
        # Names are known to all that route, so that they come to the same decision; addresses and keys
        # to those alone who make the calls.
        calls = one.pool is Pool.CLOUD
        told = {
            name: url if (name in self.clouds) == calls else ""
            for name, url in self._urls.items()
            if self._allowed(name, one.privacy)
        }
        keys = {
            name: self._keys[name]
            for name in told
            if name in self._keys and (name in self.clouds) == calls
        }
        if calls and self.llama:
            told[LLAMA] = ""
        server = next((s for s in self.llama if set(lanes) & s.lanes), None)
        if server is not None:
            told[LLAMA] = f"{server.address}/v1"
            keys[LLAMA] = str(self.key_file)
        environment = {
            "VESTRY_BACKENDS": format_pairs(told),
            "VESTRY_BACKEND_KEYS": format_pairs(keys),
            "VESTRY_LOCAL_NETWORKS": self._settings.get("VESTRY_LOCAL_NETWORKS", ""),
        }
        return {name: value for name, value in environment.items() if value}

    @property
    def key_file(self) -> Path:
        """The key of the llama.cpp servers."""
        return self._home.password_file(LLAMA)

    def llama_environment(self, server: LlamaServer) -> dict[str, str]:
        """What a llama.cpp server is told; see `workers.llama_server.LlamaSettings`."""
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
        """For clients on this machine: where each backend answers, and the files with keys."""
        urls = {name: url or self._entry(name).url for name, url in self._urls.items()}
        keys = {LLAMA: str(self.key_file)} if self.llama else {}
        return {
            "backends": urls | self._own_llama(),
            "keys": self._keys | keys,
            "found": self._found,
        }

    def _own_llama(self) -> dict[str, str]:
        """The URL of the server for those who wait, where there is one."""
        return {LLAMA: f"{self.llama[0].address}/v1"} if self.llama else {}

    @property
    def _alias(self) -> str:
        return self._settings.get("VESTRY_LLAMA_ALIAS", PACKAGED_ALIAS)

    def _entry(self, name: str) -> BackendEntry:
        return self._catalogue.backend(name)

    def _allowed(self, name: str, privacy: Privacy) -> bool:
        """Whether a worker may be told of a server: private text goes to our own addresses alone."""
        if privacy is not Privacy.PRIVATE or name in self.clouds:
            return privacy is not Privacy.PRIVATE
        url = self._urls[name] or self._entry(name).url
        return url is None or is_own(url, self._own)

    def _find_ollama(self) -> None:
        asked = self._settings.get("VESTRY_OLLAMA") or "auto"
        if asked == "off" or OLLAMA in self._urls:
            return
        url = DEFAULT_OLLAMA_URL if asked == "auto" else asked
        if "://" not in url:
            raise ValueError("VESTRY_OLLAMA is auto, off or a URL")
        version = ollama_version(url)
        if version is None and asked == "auto":
            return
        if asked == "auto":
            self._found.append(OLLAMA)
        # What was named is told to the workers all the same: it may come later.
        self._urls[OLLAMA] = url
        state = "does not answer yet" if version is None else f"{version} answers"
        self.notes.append(f"Ollama {state} at {url}; its models are preferred for generation")
        if not self._allowed(OLLAMA, Privacy.PRIVATE):
            self.notes.append(
                f"private workers are not told of {url}: it is neither loopback nor in a network of "
                "VESTRY_LOCAL_NETWORKS"
            )

    def _plan_llama(self) -> None:
        asked = self._settings.get("VESTRY_LLAMA") or "auto"
        if asked not in {"auto", "off"}:
            raise ValueError("VESTRY_LLAMA is auto or off")
        if asked == "off" or LLAMA in self._urls:
            return
        if self._alias not in {m.name for m in self._catalogue.models if m.backend == LLAMA}:
            raise ValueError(f"VESTRY_LLAMA_ALIAS: the catalogue has no such model of {LLAMA}")
        given = self._settings.get("VESTRY_LLAMA_MODEL")
        try:
            file = model_file(Path(given) if given else None)
        except NoModelError as error:
            self.notes.append(f"llama.cpp's server is left out: {error}")
            return
        self.llama = tuple(s for s in self._servers() if self._wanted(s.name))
        if self.llama:
            self.notes.append(f"llama.cpp serves {self._alias} ({file.name})")

    def _servers(self) -> list[LlamaServer]:
        """One for each set of latencies that the workers serve together, as the workers themselves.

        On a CPU interactive and bulk work would else wait for each other in one server's slots, at
        one priority.
        """
        found: dict[str, set[str]] = {}
        for lanes in self._workers.values():
            if LANES[lanes[0]].pool is Pool.GPU:
                latencies = {LANES[lane].latency for lane in lanes}
                name = LLAMA if len(latencies) > 1 else f"{LLAMA}-{min(latencies)}"
                found.setdefault(name, set()).update(lanes)
        return [
            LlamaServer(name, self._home.settle_port(name), frozenset(lanes))
            for name, lanes in found.items()
        ]


def _catalogue(settings: Mapping[str, str]) -> Catalogue:
    file = settings.get("VESTRY_CATALOGUE")
    try:
        return load(Path(file) if file else None)
    except CatalogueError as error:
        raise ValueError(str(error)) from None


# Looks for an Ollama that runs already.

DEFAULT_OLLAMA_URL: Final = "http://127.0.0.1:11434"
"""Where it listens unless it was told otherwise."""
DISCOVERY_TIMEOUT_S: Final = 0.5


def ollama_version(url: str, timeout_s: float = DISCOVERY_TIMEOUT_S) -> str | None:
    """The version of the Ollama at a URL; None where none answers.

    Args:
        url: its base URL.
        timeout_s: for its answer.
    """
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(f"{url.rstrip('/')}/api/version", timeout=timeout_s) as answer:
            version = json.loads(answer.read(4096))["version"]
    except (OSError, ValueError, LookupError, TypeError):  # urllib's errors are of these, too
        return None
    return str(version)
