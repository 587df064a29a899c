"""HTTP clients for the SDKs: they take nothing from the environment and go nowhere but to their server.

The SDKs would read proxies, keys, extra headers and log levels from environment variables, follow
redirects to other hosts and tell servers about this machine. Each gets a client from here instead.
"""

from __future__ import annotations

import logging
import urllib.request
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from inference.errors import ModelMissing
from inference.protocol import BackendConfig
from inference.remote.egress import EgressTransport
from inference.remote.local_network import guarded_transport

if TYPE_CHECKING:
    import httpx
    import httpx2

SENT: Final = frozenset(
    {
        "host", "connection", "content-length", "content-type", "transfer-encoding",
        "accept", "accept-encoding", "user-agent",
        "authorization", "x-api-key", "anthropic-version", "anthropic-beta",
    }
)  # fmt: skip
"""All headers that leave: what is not here came from the environment, or describes this machine."""

PROBE_S: Final = 3.0
"""For the questions that `probe` asks."""

_QUIET: Final = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2")
"""At DEBUG their loggers write requests, texts and keys included."""
_CONNECTIONS: Final = 64
_KEPT: Final = {"local": 0, "cloud": 8}
"""Connections kept open between calls. A new one to a server of one's own costs next to nothing, and a
kept one may just be closing: llama.cpp's ended one call in three so, and nothing is tried twice."""


def base_url(config: BackendConfig) -> str:
    """A server backend's URL, without a slash at its end.

    Raises:
        ModelMissing: it has none, or one that is not http or https.
    """
    url = (config.url or "").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ModelMissing(
            f"backend {config.name} has no base URL that begins with http:// or https://; "
            f"VESTRY_BACKENDS={config.name}=URL names one"
        )
    return url


def httpx2_client(config: BackendConfig) -> httpx2.Client:
    """For the `openai` and `anthropic` SDKs."""
    import httpx2  # noqa: PLC0415 - optional, and slow to import

    return httpx2.Client(**_settings(config, httpx2))


def httpx_client(config: BackendConfig, headers: dict[str, str]) -> httpx.Client:
    """For the `ollama` SDK, which expects the base URL and headers in it."""
    import httpx  # noqa: PLC0415 - optional, and slow to import

    return httpx.Client(**_settings(config, httpx), base_url=base_url(config), headers=headers)


def _settings(config: BackendConfig, library: Any) -> dict[str, Any]:
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    host = urlsplit(base_url(config)).hostname

    def leave(request: Any) -> None:
        """Asked of every request just before it is sent."""
        if request.url.host != host:
            raise library.RequestError("it would leave for another host", request=request)
        for name in set(request.headers.keys()) - SENT:
            del request.headers[name]

    limits = library.Limits(
        max_connections=_CONNECTIONS, max_keepalive_connections=_KEPT[config.locality]
    )
    return {
        "timeout": library.Timeout(config.timeout_s, connect=config.connect_s),
        "transport": transport_for(config, library, limits),
        "trust_env": False,
        "follow_redirects": False,
        "event_hooks": {"request": [leave]},
    }


# The transport of a backend's HTTP client: local servers only, or a cloud with a record.
#
# Every backend that talks HTTP gets its transport here, through `inference.remote.client`, and
# nowhere else; a test reads the backends' source for any other way.


def transport_for(config: BackendConfig, httpx: ModuleType, limits: Any) -> Any:
    """The one transport through which this backend may be called.

    Args:
        config: the backend's; its locality decides.
        httpx: the module `httpx` or `httpx2`, whichever the client is of.
        limits: of connections, `httpx.Limits`.
    """
    if config.locality == "cloud":
        network = httpx.HTTPTransport(proxy=_proxy(config.url or ""), limits=limits, retries=0)
        return EgressTransport(httpx, config.name, config.egress, network)
    if config.local_networks is None:
        return httpx.HTTPTransport(trust_env=False, limits=limits, retries=0)
    return guarded_transport(httpx, config.local_networks, limits)


def _proxy(url: str) -> str | None:
    """The company's proxy that a cloud lies behind, if the environment names one."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")
