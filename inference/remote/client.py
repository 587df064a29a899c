"""HTTP clients for the SDKs: nothing comes from the environment, and requests go to one server only.

The SDKs would read proxies, keys, extra headers and log levels from environment variables, follow
redirects to other hosts and describe this machine to servers. Each gets a client from here instead,
with a transport for local servers only or for a cloud with an egress record. Every backend that uses
HTTP gets its transport here; a test checks the backends' source for any other way.
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
"""All headers that are sent: others came from the environment, or describe this machine."""

PROBE_S: Final = 3.0
"""Timeout of a request by `probe`."""

_QUIET: Final = ("openai", "anthropic", "httpx", "httpx2", "httpcore", "httpcore2")
"""Loggers that write requests at DEBUG, texts and keys included."""
_CONNECTIONS: Final = 64
_KEEP_ALIVE: Final = {"local": 0, "cloud": 8}
"""Connections kept open between calls. A new one to a local server costs next to nothing, and a kept
one may be closing: with llama.cpp one call in three failed for that reason, and calls are not retried
here."""


def base_url(config: BackendConfig) -> str:
    """A server backend's URL, without a slash at its end.

    Raises:
        ModelMissing: it has none, or one that is neither http nor https.
    """
    url = (config.url or "").rstrip("/")
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ModelMissing(
            f"backend {config.name} has no base URL that begins with http:// or https://; "
            f"set one: VESTRY_BACKENDS={config.name}=URL"
        )
    return url


def httpx2_client(config: BackendConfig) -> httpx2.Client:
    """HTTP client for the `openai` and `anthropic` SDKs."""
    import httpx2  # noqa: PLC0415 - optional, and slow to import

    return httpx2.Client(**_settings(config, httpx2))


def httpx_client(config: BackendConfig, headers: dict[str, str]) -> httpx.Client:
    """HTTP client for the `ollama` SDK, which expects it to have base URL and headers."""
    import httpx  # noqa: PLC0415 - optional, and slow to import

    return httpx.Client(**_settings(config, httpx), base_url=base_url(config), headers=headers)


def _settings(config: BackendConfig, library: Any) -> dict[str, Any]:
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    host = urlsplit(base_url(config)).hostname

    def _strip_headers(request: Any) -> None:
        """Event hook before each request: refuse other hosts, remove headers that are not in SENT."""
        if request.url.host != host:
            raise library.RequestError("the request goes to another host", request=request)
        for name in set(request.headers.keys()) - SENT:
            del request.headers[name]

    limits = library.Limits(
        max_connections=_CONNECTIONS, max_keepalive_connections=_KEEP_ALIVE[config.locality]
    )
    return {
        "timeout": library.Timeout(config.timeout_s, connect=config.connect_s),
        "transport": transport_for(config, library, limits),
        "trust_env": False,
        "follow_redirects": False,
        "event_hooks": {"request": [_strip_headers]},
    }


def transport_for(config: BackendConfig, httpx: ModuleType, limits: Any) -> Any:
    """The only transport through which this backend may be called.

    Args:
        config: of the backend; its locality decides.
        httpx: the client's module, `httpx` or `httpx2`.
        limits: of connections, `httpx.Limits`.
    """
    if config.locality == "cloud":
        network = httpx.HTTPTransport(proxy=_proxy(config.url or ""), limits=limits, retries=0)
        return EgressTransport(httpx, config.name, config.egress, network)
    if config.local_networks is None:
        return httpx.HTTPTransport(trust_env=False, limits=limits, retries=0)
    return guarded_transport(httpx, config.local_networks, limits)


def _proxy(url: str) -> str | None:
    """The proxy to a cloud that the environment names, if any."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")
