"""The transport of a backend's HTTP client: local servers only, or a cloud with a record.

Every backend that talks HTTP gets its transport here, through `inference.http_client`, and nowhere
else; a test reads the backends' source for any other way.
"""

from __future__ import annotations

import urllib.request
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from inference.egress import EgressTransport
from inference.local_only import guarded_transport
from inference.protocol import BackendConfig


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
    if config.networks is None:
        return httpx.HTTPTransport(trust_env=False, limits=limits, retries=0)
    return guarded_transport(httpx, config.networks, limits)


def _proxy(url: str) -> str | None:
    """The company's proxy that a cloud lies behind, if the environment names one."""
    parts = urlsplit(url)
    proxies = urllib.request.getproxies()
    if not parts.hostname or urllib.request.proxy_bypass(parts.hostname):
        return None
    return proxies.get(parts.scheme) or proxies.get("all")
